//! Tables in plain text: aligned columns without lines, easy to read and to grep. No cell breaks its line.

use crate::terminal::printable;

/// Alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// Characters of the last column that must fit: `proven 2026-11-21, protected` has 28.
const LAST_WIDTH: usize = 28;

/// Rows under headings.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Makes an empty table.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row with one text for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells.iter().map(|cell| printable::line(cell)).collect());
    }

    /// Leaves columns out, in this order, until the lines have at most `width` characters; none without a width. A long text in
    /// the last column costs no other column: the terminal wraps it.
    pub fn fit(mut self, width: Option<usize>, order: &[&str]) -> Self {
        let Some(width) = width else {
            return self;
        };
        for name in order {
            if self.needed_width() <= width {
                break;
            }
            if let Some(column) = self.columns.iter().position(|(heading, _)| heading == name) {
                self.columns.remove(column);
                self.rows.iter_mut().for_each(|row| drop(row.remove(column)));
            }
        }
        self
    }

    /// Returns the length of the longest line, with at most [`LAST_WIDTH`] characters of its last cell.
    fn needed_width(&self) -> usize {
        let widths = self.widths();
        let (last, others) = widths.split_last().unwrap_or((&0, &[]));
        others.iter().map(|width| width + 2).sum::<usize>() + last.min(&LAST_WIDTH)
    }

    fn widths(&self) -> Vec<usize> {
        let length = |text: &str| text.chars().count();
        let mut widths: Vec<usize> = self.columns.iter().map(|(heading, _)| length(heading)).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = length(cell).max(*width);
            }
        }
        widths
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headings: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let widths = self.widths();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(&self.columns) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                match align {
                    Align::Left => line.push_str(&format!("{cell:<width$}")),
                    Align::Right => line.push_str(&format!("{cell:>width$}")),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_cell_is_always_one_line() {
        let mut table = Table::new(&[("SOURCE", Align::Left), ("ID", Align::Left)]);
        table.row(vec!["/dev/\u{1b}[2Jx\nall good".into(), "1".into()]);
        let text = table.to_string();
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("/dev/\\u{1b}[2Jx\\u{a}all good  1"), "{text}");
    }

    #[test]
    fn a_table_leaves_columns_out_where_the_terminal_is_narrow() {
        let table = || {
            let mut table = Table::new(&[
                ("GUEST", Align::Left),
                ("DISKS", Align::Left),
                ("ID", Align::Left),
                ("STATE", Align::Left),
            ]);
            table.row(vec!["web1".into(), "vda,vdb".into(), "1234".into(), "x".repeat(100)]);
            table
        };
        let headings = |width| {
            let text = table().fit(width, &["DISKS", "ID", "TOOK"]).to_string();
            let headings = text
                .lines()
                .next()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            headings.expect("has a heading")
        };
        // 5, 7, 4 and 28 characters, and two between them.
        assert_eq!(headings(None), "GUEST DISKS ID STATE");
        assert_eq!(headings(Some(50)), "GUEST DISKS ID STATE");
        assert_eq!(headings(Some(49)), "GUEST ID STATE");
        assert_eq!(headings(Some(40)), "GUEST STATE");
        assert_eq!(headings(Some(1)), "GUEST STATE");
    }

    #[test]
    fn table_columns_are_aligned() {
        let mut table = Table::new(&[("GUEST", Align::Left), ("SIZE", Align::Right)]);
        table.row(vec!["w".into(), "1 GiB".into()]);
        table.row(vec!["database".into(), "9 B".into()]);
        assert_eq!(table.to_string(), "GUEST      SIZE\nw         1 GiB\ndatabase    9 B\n");
    }
}
