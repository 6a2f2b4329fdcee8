//! `vbk trust`

use jiff::Timestamp;
use serde::Serialize;
use vbk_repo::repository::Repository;
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

/// Accepts what a repository is now, or forgets what it was.
pub fn run(context: &Context<'_>, args: &TrustArgs) -> Result<Outcome> {
    let memory = context.memory().ok_or_else(|| {
        Error::Usage("this user has no directory to remember repositories in; set XDG_STATE_HOME or HOME".into())
    })?;
    let path = context.repository_path()?;
    let failed = |error| Error::io(format!("change {}", memory.directory().display()))(error);
    let now = Timestamp::now();
    if args.forget {
        let was = memory.forget(path, now).map_err(failed)?;
        let shown = path.display();
        context.say(match &was {
            Some(was) => format!("{shown} was {was}; this host does not know it any more"),
            None => format!("nothing was known of {shown}"),
        });
        context.json_result(&Report {
            repository: shown.to_string(),
            was: was.as_ref(),
            is: None,
        })?;
        return Ok(Outcome::Done);
    }
    let repository = Repository::open(path).map_err(|error| context.explain(error, path))?;
    context.check_encrypted(&repository)?;
    // As the store says, since that is what will be read; as the marker says, where the view can't be opened.
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
                "it is {now_is}, and this is what the host takes it for from now on"
            ));
        }
        None => context.say(format_args!("{shown} is {now_is}; the host knew nothing of it before")),
    }
    context.json_result(&Report {
        repository: shown.to_string(),
        was: was.as_ref(),
        is: Some(&is),
    })?;
    Ok(Outcome::Done)
}
