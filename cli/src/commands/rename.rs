//! `vbk rename`

use serde::Serialize;
use vbk_repo::repository::Renamed;

use crate::args::RenameArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::gone;
use crate::signals;
use crate::terminal::units;

#[derive(Serialize)]
struct Report<'a> {
    from: &'a str,
    to: &'a str,
    backups: &'a [String],
}

/// Gives the backups of a guest another name.
pub fn run(context: &Context<'_>, args: &RenameArgs) -> Result<Outcome> {
    let (old, new) = (&args.old, &args.new);
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let writer = context.manager(&format!("rename {old} {new}"), args.no_wait, &cancel)?;
    if old == new {
        return Err(Error::Usage(format!("{old} has this name already")));
    }
    let names = match writer.rename(old, new, &cancel)? {
        Renamed::Done(names) => names,
        Renamed::Taken(backup) => {
            return Err(Error::Usage(format!(
                "{new} has backups of its own, e.g. {backup}; choose another name. Nothing was renamed"
            )));
        }
    };
    context.say(format_args!(
        "{old} is {new} now: {}, with new ids",
        units::count(names.len() as u64, "backup")
    ));
    gone::leave(context, args.metrics.as_deref(), &[old]);
    context.json_result(&Report {
        from: old.as_str(),
        to: new.as_str(),
        backups: &names,
    })?;
    Ok(Outcome::Done)
}
