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
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headings: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let all = || std::iter::once(&headings).chain(&self.rows);
        let widths: Vec<usize> = (0..headings.len())
            .map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in all() {
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
    fn table_columns_are_aligned() {
        let mut table = Table::new(&[("GUEST", Align::Left), ("SIZE", Align::Right)]);
        table.row(vec!["w".into(), "1 GiB".into()]);
        table.row(vec!["database".into(), "9 B".into()]);
        assert_eq!(table.to_string(), "GUEST      SIZE\nw         1 GiB\ndatabase    9 B\n");
    }
}
