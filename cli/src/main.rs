//! The `vbk` command: the only part of vbk that reads arguments and the environment, prints, and exits.
#![allow(
    clippy::exit,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "this is the command"
)]

mod advice;
mod args;
mod audit;
mod booting;
mod commands;
mod completion;
mod config;
mod config_keys;
mod context;
mod core_files;
mod damage;
mod exit;
mod facts;
mod file_forms;
mod forgotten;
mod gone;
mod guest_files;
mod handover;
mod jumps;
mod leftover_mounts;
mod limits;
mod listing;
mod machine;
mod manual;
mod metrics;
mod new_keys;
mod notify;
mod partition_types;
mod period;
mod place;
mod pruning;
mod read_limit;
mod restoring;
mod secrets;
mod servers;
mod signals;
mod terminal;
mod token_file;
mod trust;
mod unlock;
mod warnings;
mod zone;

use std::process::ExitCode;

use clap::FromArgMatches;

use crate::args::{Cli, Command, Sources};
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::terminal::{log, output};

fn main() -> ExitCode {
    if let Some(code) = freeze_helper().or_else(completion::answer) {
        return code;
    }
    let words: Vec<_> = std::env::args_os().collect();
    let matches = args::command()
        .try_get_matches_from(&words)
        .unwrap_or_else(|error| refuse(&advice::improved(error, &words)));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    log::start(cli.global.verbose, cli.global.quiet);
    raise_open_file_limit();
    let result = run(&cli, Sources::of(&matches)).map_err(|error| advice::amended(error, &words));
    // Lost output is a failure: a full disk behind a redirection must not look like success.
    if let Some(error) = output::failure() {
        log::complain(format_args!("can't write to standard output: {error}"));
        return ExitCode::from(1);
    }
    match result {
        Ok(outcome) => outcome.code(),
        Err(error) => {
            match cli.global.json {
                true => log::complain_json(&error.json()),
                false => log::complain(error.message()),
            }
            error.code()
        }
    }
}

/// Ends a run whose arguments can't be used, or that only wants a help text. With `--json` the error is JSON as well.
fn refuse(error: &clap::Error) -> ! {
    if error.use_stderr() && std::env::args_os().any(|word| word == "--json") {
        let (message, hint) = advice::parts(error);
        log::complain_json(&Error::Usage(message).json_with(hint.as_deref()));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// Runs as the helper process that thaws a guest, if the arguments say so. Called first: the helper needs neither a
/// configuration nor a log.
fn freeze_helper() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    args.next().filter(|word| word == vbk::guest::freeze::HELPER)?;
    let task = args.next()?.into_string().ok()?;
    match vbk::guest::freeze::run_helper(&task, &mut std::io::stdout()) {
        true => Some(ExitCode::SUCCESS),
        false => Some(ExitCode::FAILURE),
    }
}

fn run(cli: &Cli, sources: Sources) -> Result<Outcome> {
    let context = Context::new(&cli.global, sources);
    let result = carry_out(&context, &cli.command);
    // Also after a failed run, which may have stored something.
    context.remember();
    result.map(|outcome| match outcome {
        Outcome::Done if context.has_doubts() => Outcome::Warnings,
        outcome => outcome,
    })
}

fn carry_out(context: &Context<'_>, command: &Command) -> Result<Outcome> {
    let is_without_store = matches!(
        command,
        Command::Limit(_)
            | Command::Mounts(_)
            | Command::Umount(_)
            | Command::Snapshots(_)
            | Command::Guests
            | Command::Config(_)
            | Command::Generate(_)
            | Command::Token(_)
            | Command::Policy(_)
    );
    match limits::check() {
        Err(error) if !is_without_store => {
            return match command {
                Command::Status(args) if args.check => Ok(commands::status::unknown(context, &error)),
                _ => Err(error),
            };
        }
        _ => {}
    }
    match command {
        Command::Init(args) => commands::init::run(context, args),
        Command::Backup(args) => commands::backup::run(context, args),
        Command::Limit(args) => commands::limit::run(context, args),
        Command::List(args) => commands::list::run(context, args),
        Command::Show(args) => commands::show::run(context, args),
        Command::Diff(args) => commands::diff::run(context, args),
        Command::Ls(args) => commands::ls::run(context, args),
        Command::Cat(args) => commands::cat::run(context, args),
        Command::Copy(args) => commands::copy::run(context, args),
        Command::Cp(args) => commands::cp::run(context, args),
        Command::Find(args) => commands::find::run(context, args),
        Command::Mount(args) => commands::mount::run(context, args),
        Command::Mounts(args) => commands::mounts::run(context, args),
        Command::Umount(args) => commands::umount::run(context, args),
        Command::Restore(args) => commands::restore::run(context, args),
        Command::Boot(args) => commands::boot::run(context, args),
        Command::Rehearse(args) => commands::rehearse::run(context, args),
        Command::Forget(args) => commands::forget::run(context, args),
        Command::Unforget(args) => commands::unforget::run(context, args),
        Command::Rename(args) => commands::rename::run(context, args),
        Command::Protect(args) => commands::forget::protect(context, args, true),
        Command::Unprotect(args) => commands::forget::protect(context, args, false),
        Command::Note(args) => commands::note::run(context, args),
        Command::Prune(args) => commands::prune::run(context, args),
        Command::Key(command) => commands::key::run(context, command),
        Command::Snapshots(args) => commands::snapshots::run(context, args),
        Command::Stats => commands::stats::run(context),
        Command::Status(args) => commands::status::run(context, args),
        Command::Guests => commands::guests::run(context),
        Command::Config(command) => commands::config::run(context, command),
        Command::Generate(command) => commands::generate::run(context, command),
        Command::Trust(args) => commands::trust::run(context, args),
        Command::Repair(args) => commands::repair::run(context, args),
        Command::Serve(args) => commands::serve::run(context, args),
        Command::Policy(args) => commands::policy::run(context, args),
        Command::Token(command) => commands::token::run(context, command),
        Command::Verify(args) => commands::verify::run(context, args),
    }
}

/// Raises the limit of open files: the store keeps up to 768 open, and a mount has a store for each view.
fn raise_open_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With a lower limit large repositories fail with a message of their own.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard);
    }
}
