//! `vbk trust`

use jiff::Timestamp;
use serde::Serialize;
use vbk_repo::standing::Standing;

use crate::args::TrustArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::trust::{Known, describe};

#[derive(Serialize)]
struct Report<'a> {
    repository: String,
    was: Option<&'a Known>,
    is: Option<&'a Standing>,
}

/// Accepts the present state of a repository, or forgets the remembered one.
pub fn run(context: &Context<'_>, args: &TrustArgs) -> Result<Outcome> {
    let memory = context.memory().ok_or_else(|| {
        Error::Usage(
            "this user has no directory in which vbk can remember repositories; set XDG_STATE_HOME or HOME".into(),
        )
    })?;
    let path = context.repository_path()?;
    let failed = |error| Error::io(format!("change {}", memory.directory().display()))(error);
    let now = Timestamp::now();
    if args.forget {
        let was = memory.forget(path, now).map_err(failed)?;
        let shown = path.display();
        context.say(match &was {
            Some(was) => format!("{shown} was {was}; this host has forgotten it"),
            None => format!("this host does not know {shown}"),
        });
        context.json_result(&Report {
            repository: shown.to_string(),
            was: was.as_ref(),
            is: None,
        })?;
        return Ok(Outcome::Done);
    }
    let repository = context.open_at(path)?;
    context.check_encrypted(&repository)?;
    // The store decides, because it is what will be read; the marker decides where the view can't be opened.
    let is = repository.standing_of_view().unwrap_or_else(|| repository.standing());
    repository.settle();
    let was = memory.replace(repository.path(), &is, now).map_err(failed)?;
    let shown = repository.path().display();
    let now_is = describe(&is);
    match &was {
        Some(was) if was.standing == is => context.say(format_args!("{shown} is {now_is}, as this host knew")),
        Some(was) => {
            context.say(format_args!("{shown} was {was}"));
            for change in is.changes_since(&was.standing) {
                context.say(format_args!("  {change}"));
            }
            context.say(format_args!(
                "it is {now_is}; the host remembers it as this from now on"
            ));
        }
        None => context.say(format_args!("{shown} is {now_is}; the host did not know it before")),
    }
    context.json_result(&Report {
        repository: shown.to_string(),
        was: was.as_ref(),
        is: Some(&is),
    })?;
    Ok(Outcome::Done)
}
