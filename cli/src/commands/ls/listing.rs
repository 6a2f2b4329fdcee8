//! Lists directories as ls(1) does, however large they are.

use vbk_inside::fs::{FileKind, FileTree, Node, Stat};
use vbk_inside::walk::{Entered, Entries};

use crate::args::LsArgs;
use crate::exit::{Outcome, Result};
use crate::file_forms::{FileJson, Names, mode_text, shown, size_text};
use crate::guest_files::Located;
use crate::terminal::output::{self, JsonList, json_text};

/// Rows of a long listing that are aligned together.
const ALIGNED: usize = 1000;

/// Cells of a row besides the name: mode, links, owner, group, size, time.
type Row = ([String; 6], String);

/// Listing of one object that was named.
pub struct Listing<'a> {
    args: &'a LsArgs,
    names: Names,
    json: Option<JsonList>,
    outcome: Outcome,
    rows: Vec<Row>,
}

/// A directory below which others are listed.
struct Level {
    entries: Entries,
    path: Vec<u8>,
}

impl<'a> Listing<'a> {
    /// Makes a listing that goes on with a JSON list, if there is one.
    pub fn new(args: &'a LsArgs, names: Names, json: Option<JsonList>) -> Self {
        Self {
            args,
            names,
            json,
            outcome: Outcome::Done,
            rows: Vec::new(),
        }
    }

    /// Returns the outcome so far.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Returns the JSON list.
    pub fn into_json(self) -> Option<JsonList> {
        self.json
    }

    /// Lists an object of a backup, the first that is listed or a later one.
    pub fn list(&mut self, backup: &str, top: &Located, is_first: bool) -> Result<()> {
        let tree = &*top.tree;
        if top.kind != FileKind::Directory || self.args.directory {
            let path = top.below(b"");
            self.entry(tree, &path, &path, top.node)?;
            self.print_rows();
            return Ok(());
        }
        let mut entered = Entered::default();
        let mut levels = Vec::new();
        let mut next = Some((top.node, Vec::new()));
        loop {
            if let Some((node, path)) = next.take() {
                let depth = levels.len();
                if self.args.recursive || self.args.paths.len() > 1 {
                    self.heading(backup, &top.below(&path), is_first && depth == 0);
                }
                match entered.enter(node, depth) {
                    Err(error) => self.failed(&top.below(&path), &error),
                    Ok(()) => {
                        self.directory(top, node, depth, &path)?;
                        if self.args.recursive {
                            let entries = Entries::new(node, depth);
                            levels.push(Level { entries, path });
                        }
                    }
                }
            }
            let Some(level) = levels.last_mut() else {
                return Ok(());
            };
            if output::is_closed() {
                return Ok(());
            }
            // Listed a second time, so that no directory's subdirectories are held in memory together.
            let Some(entry) = level.entries.next(tree) else {
                levels.pop();
                continue;
            };
            // An error was shown with the entries of this directory.
            let kind = entry.kind.or_else(|| tree.stat(entry.node).ok().map(|stat| stat.kind));
            if kind == Some(FileKind::Directory) && is_shown(self.args, self.json.is_some(), &entry.name) {
                next = Some((entry.node, join(&level.path, &entry.name)));
            }
        }
    }

    fn heading(&self, backup: &str, path: &[u8], is_first: bool) {
        if self.json.is_none() {
            let gap = if is_first { "" } else { "\n" };
            output::line(format_args!("{gap}{backup}:{}:", shown(path)));
        }
    }

    fn directory(&mut self, top: &Located, node: Node, depth: usize, path: &[u8]) -> Result<()> {
        let mut entries = Entries::new(node, depth);
        loop {
            let entry = entries.next(&*top.tree);
            if let Some(error) = entries.take_error() {
                self.failed(&top.below(path), &error);
            }
            let Some(entry) = entry else { break };
            if is_shown(self.args, self.json.is_some(), &entry.name) {
                let path = top.below(&join(path, &entry.name));
                self.entry(&*top.tree, &path, &entry.name, entry.node)?;
            }
            if output::is_closed() {
                break;
            }
        }
        self.print_rows();
        Ok(())
    }

    /// Shows one object under a name.
    fn entry(&mut self, tree: &dyn FileTree, path: &[u8], name: &[u8], node: Node) -> Result<()> {
        if !self.args.long && self.json.is_none() {
            output::line(shown(name));
            return Ok(());
        }
        let described = tree.stat(node).and_then(|stat| {
            let is_link = stat.kind == FileKind::Link;
            let target = is_link.then(|| tree.read_link(node)).transpose()?;
            Ok((stat, target))
        });
        let (stat, target) = match described {
            Ok(described) => described,
            Err(error) => {
                self.failed(path, &error);
                return Ok(());
            }
        };
        if let Some(json) = &mut self.json {
            json.item(&json_text(&FileJson::new(path, &stat, target.as_deref()))?);
            return Ok(());
        }
        let mut text = shown(name);
        if let Some(target) = target {
            text.push_str(" -> ");
            text.push_str(&shown(&target));
        }
        let cells = self.cells(&stat);
        self.rows.push((cells, text));
        if self.rows.len() == ALIGNED {
            self.print_rows();
        }
        Ok(())
    }

    fn cells(&self, stat: &Stat) -> [String; 6] {
        [
            mode_text(stat),
            stat.links.to_string(),
            self.names.user(stat.uid),
            self.names.group(stat.gid),
            size_text(stat, self.args.human_readable),
            stat.modified.strftime("%Y-%m-%d %H:%M").to_string(),
        ]
    }

    fn print_rows(&mut self) {
        let mut widths = [0; 6];
        for (cells, _) in &self.rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = cell.chars().count().max(*width);
            }
        }
        let [
            mode_width,
            links_width,
            owner_width,
            group_width,
            size_width,
            time_width,
        ] = widths;
        let mut text = String::new();
        for ([mode, links, owner, group, size, time], name) in self.rows.drain(..) {
            text.push_str(&format!(
                "{mode:mode_width$} {links:>links_width$} {:owner_width$} {:group_width$} {size:>size_width$} \
                 {time:time_width$} {name}\n",
                shown(owner.as_bytes()),
                shown(group.as_bytes()),
            ));
        }
        output::write(text);
    }

    fn failed(&mut self, path: &[u8], error: &vbk_inside::Error) {
        tracing::error!("{}: {error}", shown(path));
        self.outcome = self.outcome.worse(Outcome::of_unread(error));
    }
}

fn is_shown(args: &LsArgs, all: bool, name: &[u8]) -> bool {
    args.all || all || !name.starts_with(b".")
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        [] => name.to_vec(),
        path => [path, name].join(&b'/'),
    }
}
