//! Candidates without a repository, and the kinds of arguments.

use super::*;

/// The values that complete the last of these words.
fn values(words: &[&str]) -> Vec<String> {
    let mut all = vec![OsString::from("vbk")];
    all.extend(words.iter().map(OsString::from));
    let lines = candidates(all.len() - 1, all);
    let value = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
    lines.lines().map(value).collect()
}

#[test]
fn commands_and_their_options_are_completed() {
    assert_eq!(values(&["unf"]), ["unforget"]);
    assert_eq!(values(&["key", "e"]), ["export"]);
    assert_eq!(values(&["forget", "--keep-w"]), ["--keep-weekly", "--keep-within"]);
    assert_eq!(values(&["token", "add", "x", "--rights", "ba"]), ["backup"]);
    let commands = values(&[""]);
    assert!(commands.contains(&"backup".into()) && commands.contains(&"verify".into()));
    // Packagers' commands, options of the program itself, and options where a command is due.
    for hidden in ["generate", "--json", "--help"] {
        assert!(!commands.contains(&hidden.into()), "{hidden}: {commands:?}");
    }
    assert_eq!(values(&["mount", "--scratch"]), ["--scratch-size"]);
    assert!(values(&["--js"]).contains(&"--json".into()));
    assert_eq!(values(&["backup", "web1", "vda=/dev/zer"]), ["vda=/dev/zero"]);
    assert_eq!(values(&["backup", "web1", "/dev/zer"]), ["/dev/zero"]);
}

#[test]
fn nothing_is_completed_where_there_is_nothing() {
    for words in [&["frobnicate"][..], &["show", "--frob"], &["backup", "--jobs", "x"]] {
        assert_eq!(values(words), [""; 0], "{words:?}");
    }
    // Another host is not asked.
    for address in ["ssh://nowhere.invalid/x", "vbk://nowhere.invalid"] {
        assert_eq!(values(&["--repo", address, "show", "web1"]), [""; 0]);
    }
    assert!(question(&["0".into(), "--".into()]).is_none());
    assert!(question(&["x".into(), "--".into(), "vbk".into()]).is_none());
}

#[test]
fn every_argument_for_a_backup_or_a_guest_is_completed() {
    let mut root = Cli::command();
    root.build();
    let mut left = vec![root];
    let mut forms = Vec::new();
    while let Some(command) = left.pop() {
        for arg in command.get_positionals() {
            let names = arg.get_value_names().unwrap_or_default().join(" ");
            let form = form_of(command.get_name(), arg);
            let is_name = names.contains("BACKUP") || names.split([' ', '|']).any(|name| name == "GUEST");
            // The guests of `vbk copy` are patterns, and in another repository.
            let is_known = command.get_name() != "copy";
            assert!(
                !(is_name && is_known) || form.is_some(),
                "{} {names} is not completed",
                command.get_name()
            );
            forms.extend(form);
        }
        left.extend(command.get_subcommands().cloned());
    }
    for form in [
        Form::Guest,
        Form::Backup,
        Form::Inside,
        Form::GuestOrBackup,
        Form::Mount,
    ] {
        assert!(forms.iter().any(|(found, _)| *found == form), "{form:?}");
    }
}
