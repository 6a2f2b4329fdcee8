//! Reads a page of the manual: its stage and its parts, in order. Refuses a block that is neither run nor marked.

use std::ops::Range;

/// A page.
pub struct Page {
    pub file: String,
    pub lines: Vec<String>,
    /// How its host looks at the start.
    pub stage: String,
    pub parts: Vec<Part>,
}

/// A part that is run, or that says why it is not.
pub enum Part {
    /// Commands that the page does not show.
    Do { line: usize, script: String },
    /// A command and what it prints.
    Step(Step),
    /// A file, which the commands below find.
    File { line: usize, path: String, text: String },
    /// A configuration.
    Config { line: usize, text: String },
    /// Rules of Prometheus.
    Rules { line: usize, text: String },
    /// The keys of a command's JSON.
    Keys {
        line: usize,
        command: String,
        keys: Vec<Key>,
    },
    /// A block that can't be run here.
    NotRun {
        line: usize,
        reason: String,
        tested: Vec<String>,
    },
}

/// A command in a block.
pub struct Step {
    pub line: usize,
    pub command: String,
    /// The lines below it.
    pub output: Range<usize>,
    pub exit: i32,
}

/// A row of a table of keys: `` `disks[].size_bytes` ``, with a question mark behind it if it may be missing.
pub struct Key {
    pub path: String,
    pub is_optional: bool,
}

/// What a comment says about the next block.
enum Mark {
    File(String),
    NotRun(String, Vec<String>),
}

impl Page {
    pub fn parse(file: &str, text: &str) -> Result<Self, String> {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut page = Self {
            file: file.to_owned(),
            lines,
            stage: String::new(),
            parts: Vec::new(),
        };
        let mut mark = None;
        let mut keys_of = None;
        let mut at = 0;
        while at < page.lines.len() {
            let line = page.lines[at].clone();
            if line.starts_with("<!--") {
                let end = page.find(at, |line| line.contains("-->"))?;
                let comment = page.lines[at..=end].join("\n");
                let comment = comment.trim_start_matches("<!--");
                let comment = comment.split("-->").next().unwrap_or_default().trim();
                let (word, rest) = comment.split_once(':').unwrap_or((comment, ""));
                let rest = rest.trim().to_owned();
                match word {
                    "stage" => page.stage = rest,
                    "do" => page.parts.push(Part::Do {
                        line: at + 1,
                        script: rest,
                    }),
                    "file" => mark = Some(Mark::File(rest)),
                    "json" => keys_of = Some((at + 1, rest)),
                    "not run" => mark = Some(page.not_run(at, &rest)?),
                    _ => return page.refuse(at, "a comment that is neither stage, do, file, json nor not run"),
                }
                at = end + 1;
            } else if let Some(kind) = line.strip_prefix("```") {
                let end = page.find(at + 1, |line| line == "```")?;
                page.add_block(kind, at, end, mark.take())?;
                at = end + 1;
            } else if line.starts_with('|') && keys_of.is_some() {
                let end = (at..page.lines.len()).find(|row| !page.lines[*row].starts_with('|'));
                let end = end.unwrap_or(page.lines.len());
                let keys = page.lines[at + 2..end].iter().filter_map(|row| Key::of_row(row));
                let (line, command) = keys_of.take().expect("it is some");
                let keys = keys.collect();
                page.parts.push(Part::Keys { line, command, keys });
                at = end;
            } else {
                if line.starts_with(char::is_whitespace) && line.trim_start().starts_with("$ ") {
                    return page.refuse(at, "a command outside of a block");
                }
                at += 1;
            }
        }
        match page.is_run() && page.stage.is_empty() {
            true => page.refuse(0, "the page has commands and no stage"),
            false => Ok(page),
        }
    }

    /// Returns whether a part is run.
    pub fn is_run(&self) -> bool {
        let is_run = |part: &Part| !matches!(part, Part::NotRun { .. } | Part::Rules { .. });
        self.parts.iter().any(is_run)
    }

    /// The lines that the page shows below a command.
    pub fn shown(&self, step: &Step) -> Vec<&str> {
        self.lines[step.output.clone()].iter().map(String::as_str).collect()
    }

    /// The text of the page with other lines below these steps.
    pub fn with(&self, edits: Vec<(&Step, Vec<String>)>) -> String {
        let mut lines = self.lines.clone();
        for (step, output) in edits.into_iter().rev() {
            let code = usize::from(step.exit != 0);
            lines.splice(step.output.start..step.output.end + code, output);
        }
        lines.join("\n") + "\n"
    }

    fn refuse<T>(&self, at: usize, why: &str) -> Result<T, String> {
        Err(format!("{}:{}: {why}", self.file, at + 1))
    }

    fn find(&self, from: usize, is_wanted: impl Fn(&str) -> bool) -> Result<usize, String> {
        let found = (from..self.lines.len()).find(|at| is_wanted(&self.lines[*at]));
        found.map_or_else(|| self.refuse(from.saturating_sub(1), "it does not end"), Ok)
    }

    fn not_run(&self, at: usize, text: &str) -> Result<Mark, String> {
        match text.split_once("; tested by ") {
            Some((reason, tested)) => Ok(Mark::NotRun(
                reason.to_owned(),
                tested.split(", ").map(str::to_owned).collect(),
            )),
            None => self.refuse(at, "write <!-- not run: REASON; tested by PATH, PATH -->"),
        }
    }

    fn add_block(&mut self, kind: &str, start: usize, end: usize, mark: Option<Mark>) -> Result<(), String> {
        let text = self.lines[start + 1..end].join("\n") + "\n";
        let line = start + 1;
        match (mark, kind) {
            (Some(Mark::NotRun(reason, tested)), _) => self.parts.push(Part::NotRun { line, reason, tested }),
            (Some(Mark::File(path)), _) => {
                if kind == "toml" {
                    let text = text.clone();
                    self.parts.push(Part::Config { line, text });
                }
                self.parts.push(Part::File { line, path, text });
            }
            (None, "console") => self.add_steps(start + 1, end)?,
            (None, "toml") => self.parts.push(Part::Config { line, text }),
            (None, "yaml") => self.parts.push(Part::Rules { line, text }),
            (None, "text") if !self.lines[start + 1..end].iter().any(|line| prompted(line).is_some()) => {}
            (None, "text") => return self.refuse(start, "commands belong in a block of console"),
            (None, _) => return self.refuse(start, "a block that is neither run nor marked"),
        }
        Ok(())
    }

    fn add_steps(&mut self, start: usize, end: usize) -> Result<(), String> {
        let mut at = start;
        if prompted(&self.lines[at]).is_none() {
            return self.refuse(at, "a block begins with a command");
        }
        while at < end {
            let line = at + 1;
            let mut command = prompted(&self.lines[at]).unwrap_or_default().to_owned();
            at += 1;
            while command.ends_with('\\') && at < end {
                command = format!("{command}\n{}", self.lines[at]);
                at += 1;
            }
            let next = (at..end).find(|at| prompted(&self.lines[*at]).is_some()).unwrap_or(end);
            let code = self.lines[at..next].last().and_then(|line| line.strip_prefix("(exit "));
            let code = code.and_then(|code| code.strip_suffix(')')?.parse().ok());
            let output = at..next - usize::from(code.is_some());
            let exit = code.unwrap_or(0);
            let step = Step {
                line,
                command,
                output,
                exit,
            };
            self.parts.push(Part::Step(step));
            at = next;
        }
        Ok(())
    }
}

impl Part {
    pub fn line(&self) -> usize {
        match self {
            Self::Step(step) => step.line,
            Self::Do { line, .. }
            | Self::File { line, .. }
            | Self::Config { line, .. }
            | Self::Rules { line, .. }
            | Self::Keys { line, .. }
            | Self::NotRun { line, .. } => *line,
        }
    }
}

impl Key {
    fn of_row(row: &str) -> Option<Self> {
        let cell = row.trim_start_matches('|').split('|').next()?.trim();
        let path = cell.strip_prefix('`')?.split('`').next()?;
        Some(Self {
            path: path.to_owned(),
            is_optional: cell.ends_with('?'),
        })
    }
}

/// Returns the command behind `$ `, or behind the name of a host: `dc2$ `.
fn prompted(line: &str) -> Option<&str> {
    let (host, command) = line.split_once("$ ")?;
    let is_host = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    host.bytes().all(is_host).then_some(command)
}
