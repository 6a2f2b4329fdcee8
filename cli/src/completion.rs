//! Completion of arguments in a shell: commands and options, and what is found when the shell asks, i.e. guests, backups,
//! disks and mount points.
//!
//! The scripts of the shells run `vbk __complete INDEX -- WORDS...` and get a candidate a line, perhaps with a tab and its
//! meaning. This process asks nothing, says nothing and ends in time, whatever the repository does: a second process works,
//! with no terminal to ask at, and is left behind when the time is over, as a dead NFS server would hold it.

mod names;

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Arg, Command, CommandFactory};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter, complete};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::name::GuestName;

use crate::args::{Cli, InsidePath, Shell};
use crate::terminal::output;

use names::{Form, Names};

/// First argument of the process that a shell starts.
const ASKED: &str = "__complete";
/// First argument of the process that works.
const WORKS: &str = "__complete-work";
/// Time after which nothing is completed.
const LIMIT: Duration = Duration::from_secs(2);

/// Returns the script for a shell.
pub fn script(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => include_str!("completion/vbk.bash"),
        Shell::Zsh => include_str!("completion/vbk.zsh"),
        Shell::Fish => include_str!("completion/vbk.fish"),
    }
}

/// Answers a shell, if the arguments are its question. Called first: nothing may be written but the answer.
pub fn answer() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let works = match args.next()? {
        word if word == ASKED => false,
        word if word == WORKS => true,
        _ => return None,
    };
    let args: Vec<_> = args.collect();
    match works {
        false => output::write_bytes(&ask(&args).unwrap_or_default()),
        true => {
            let candidates = question(&args).map(|(index, words)| candidates(index, words));
            output::write_bytes(candidates.unwrap_or_default().as_bytes());
        }
    }
    Some(ExitCode::SUCCESS)
}

/// Has another process find the answer; `None` if it takes too long.
fn ask(args: &[OsString]) -> Option<Vec<u8>> {
    let mut process = Process::new(std::env::current_exe().ok()?)
        .arg(WORKS)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // Not in the foreground of the terminal.
        .process_group(0)
        .spawn()
        .ok()?;
    let answer = read_until(&mut process, Instant::now() + LIMIT);
    match answer {
        Some(_) => _ = process.wait(),
        // Not waited for: a process in an uninterruptible sleep does not end.
        None => _ = process.kill(),
    }
    answer
}

fn read_until(process: &mut Child, end: Instant) -> Option<Vec<u8>> {
    let stdout = process.stdout.as_mut()?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).ok()?;
        if poll(&mut ready, timeout).ok()? == 0 {
            return None;
        }
        match stdout.read(&mut part).ok()? {
            0 => return Some(answer),
            read => answer.extend(&part[..read]),
        }
    }
}

/// Reads `INDEX -- WORDS...`.
fn question(args: &[OsString]) -> Option<(usize, Vec<OsString>)> {
    let (index, words) = match args {
        [index, dashes, words @ ..] if dashes == "--" => (index, words),
        _ => return None,
    };
    let index = index.to_str()?.parse().ok()?;
    (index < words.len()).then(|| (index, words.to_vec()))
}

/// Returns the candidates for the word at `index`, each in a line.
fn candidates(index: usize, words: Vec<OsString>) -> String {
    let current = words[index].clone();
    let names = Arc::new(Names::of(&words[..index]));
    let found = complete(
        &mut completing(Cli::command(), &names),
        words,
        index,
        std::env::current_dir().ok().as_deref(),
    );
    let mut lines = String::new();
    for candidate in shown(&current, found.unwrap_or_default()) {
        let Some(value) = candidate.get_value().to_str() else {
            continue;
        };
        // The line ends with it, and a terminal should not get it.
        if value.contains(char::is_control) {
            continue;
        }
        lines.push_str(value);
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.lines().next().unwrap_or_default().replace(char::is_control, " ");
        if !help.is_empty() {
            lines.extend(["\t", &help]);
        }
        lines.push('\n');
    }
    lines
}

/// Leaves out hidden candidates, and options before their first dash: there are many of them.
fn shown(current: &OsStr, mut found: Vec<CompletionCandidate>) -> Vec<CompletionCandidate> {
    let is_option = |candidate: &CompletionCandidate| candidate.get_value().as_encoded_bytes().starts_with(b"-");
    found.retain(|candidate| !(candidate.is_hide_set() || current.is_empty() && is_option(candidate)));
    found
}

/// Adds to each argument the function that finds its values, as its type and name say.
fn completing(command: Command, names: &Arc<Names>) -> Command {
    let name = command.get_name().to_owned();
    command
        .mut_args(|arg| match form_of(&name, &arg) {
            Some((form, or_path)) => {
                let names = Arc::clone(names);
                arg.add(ArgValueCompleter::new(move |current: &OsStr| {
                    let mut found = names.candidates(form, current);
                    if or_path {
                        found.extend(paths(form, current));
                    }
                    found
                }))
            }
            None => arg,
        })
        .mut_subcommands(|sub| completing(sub, names))
}

/// Returns the files that begin with what is typed; those of a disk may have its name before them.
fn paths(form: Form, current: &OsStr) -> Vec<CompletionCandidate> {
    let typed = current.to_str().filter(|_| form == Form::Disk);
    match typed.and_then(|typed| typed.split_once('=')) {
        Some((name, path)) if !name.contains('/') => {
            let found = PathCompleter::any().complete(OsStr::new(path)).into_iter();
            found.map(|file| file.add_prefix(format!("{name}="))).collect()
        }
        _ => PathCompleter::any().complete(current),
    }
}

/// Returns what a positional argument names, and whether it can be a path as well.
fn form_of(command: &str, arg: &Arg) -> Option<(Form, bool)> {
    if !arg.is_positional() {
        return None;
    }
    let is = |value: TypeId| arg.get_value_parser().type_id() == value;
    match (command, arg.get_id().as_str()) {
        ("backup", "disks") => Some((Form::Disk, true)),
        ("umount", "dirs") => Some((Form::Mount, false)),
        ("mount", "what") => Some((Form::Backup, true)),
        ("cp", "paths") => Some((Form::Inside, true)),
        ("unforget", "what") => Some((Form::Forgotten, false)),
        ("forget" | "verify", "what") => Some((Form::GuestOrBackup, false)),
        ("find" | "limit", "words") => Some((Form::Guest, false)),
        ("diff", _) => Some((Form::Backup, false)),
        _ if is(TypeId::of::<BackupSpec>()) => Some((Form::Backup, false)),
        _ if is(TypeId::of::<GuestName>()) => Some((Form::Guest, false)),
        _ if is(TypeId::of::<InsidePath>()) => Some((Form::Inside, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
