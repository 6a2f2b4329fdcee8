//! `vbk generate`

use std::path::Path;

use jiff::Timestamp;

use crate::args::GenerateCommand;
use crate::completion;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::manual;
use crate::terminal::output;

/// Writes what packages contain besides the program.
pub fn run(context: &Context<'_>, command: &GenerateCommand) -> Result<Outcome> {
    match command {
        GenerateCommand::Man { dir } => man(context, dir),
        GenerateCommand::Completion { shell } => {
            output::write(completion::script(*shell));
            Ok(Outcome::Done)
        }
    }
}

fn man(context: &Context<'_>, dir: &Path) -> Result<Outcome> {
    let pages = manual::pages(&date()).map_err(|error| Error::Bug(error.to_string()))?;
    for page in &pages {
        let path = dir.join(&page.file);
        std::fs::write(&path, &page.source).map_err(Error::io(format!("write {}", path.display())))?;
    }
    context.say(format_args!("{} pages are in {}", pages.len(), dir.display()));
    Ok(Outcome::Done)
}

/// Returns the date of the pages: that of the sources, if the build says it (reproducible-builds.org), or today.
fn date() -> String {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok();
    let given = epoch.and_then(|text| Timestamp::from_second(text.parse().ok()?).ok());
    given.unwrap_or_else(Timestamp::now).strftime("%Y-%m-%d").to_string()
}
