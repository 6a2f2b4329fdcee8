//! Runs the parts of a page, one after the other, in one shell on a host of its own (host.sh).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use crate::support::lab::{Lab, VBK};
use crate::support::tools::command;

use super::page::{Page, Part};

const HOST: &str = include_str!("host.sh");

/// What a part printed, and its exit code.
#[derive(Debug, Clone)]
pub struct Printed {
    pub output: String,
    pub exit: i32,
}

/// Runs a page. Gives what was printed by its parts that are run, by their numbers.
pub fn run(lab: &Lab, page: &Page) -> Result<BTreeMap<usize, Printed>, String> {
    let mut script = format!("{HOST}\nstage_{}\nset +e\n", page.stage.replace('-', "_"));
    let mut runs = Vec::new();
    for (number, part) in page.parts.iter().enumerate() {
        if let Some(text) = commands(part) {
            // A record separator begins no line of any output.
            let _ = write!(
                script,
                "printf '\\036<{number}\\n'\n{text}\nprintf '\\n\\036>%d\\n' $?\n"
            );
            runs.push(number);
        }
    }
    script += "must_be_clean\nprintf '\\036<end\\n'\n";
    let file = lab.path("script");
    fs::write(&file, script).map_err(|error| error.to_string())?;
    let mut unshare = command(
        "unshare",
        args!["--mount", "--pid", "--net", "--uts", "--fork", "--kill-child"],
    );
    unshare.args(args![
        "--mount-proc",
        "--propagation",
        "private",
        "bash",
        file,
        lab.dir(),
        VBK
    ]);
    let said = lab.start_command(unshare, args![]).wait();
    let text = said.text() + &said.stderr;

    let mut printed = BTreeMap::new();
    for number in runs {
        let part = &page.parts[number];
        let found = text.split_once(&format!("\u{1e}<{number}\n"));
        let ended = found.and_then(|(_, rest)| rest.split_once("\n\u{1e}>"));
        let Some((output, rest)) = ended else {
            let (file, line) = (&page.file, part.line());
            return Err(format!(
                "{file}:{line}: it does not come to its end:\n{}",
                end_of(&text)
            ));
        };
        let exit = rest.lines().next().and_then(|code| code.parse().ok()).unwrap_or(-1);
        if exit != 0 && matches!(part, Part::Do { .. } | Part::File { .. }) {
            return Err(format!("{}:{}: failed with {exit}: {output}", page.file, part.line()));
        }
        let output = output.to_owned();
        printed.insert(number, Printed { output, exit });
    }
    match text.contains("\u{1e}<end\n") {
        true => Ok(printed),
        false => Err(format!("{}: something is left behind:\n{}", page.file, end_of(&text))),
    }
}

fn end_of(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// The commands of a part that is run.
fn commands(part: &Part) -> Option<String> {
    Some(match part {
        Part::Do { script, .. } => format!("set -e\n{script}\nset +e\n(exit 0)"),
        Part::Step(step) => step.command.clone(),
        Part::File { path, text, .. } => format!("write_file '{path}' <<'END OF FILE'\n{text}END OF FILE"),
        Part::Config { text, .. } => {
            format!(
                "write_file /tmp/vbk-docs.toml <<'END OF FILE'\n{text}END OF FILE\nvbk --config-file /tmp/vbk-docs.toml config check"
            )
        }
        Part::Keys { command, .. } => format!("{{ {command}\n}} 2>/dev/null"),
        Part::Rules { .. } | Part::NotRun { .. } => return None,
    })
}
