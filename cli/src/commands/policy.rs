//! `vbk policy`

use std::time::Duration;

use serde::Serialize;
use vbk_remote::server::Policy;
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::Home;

use crate::args::PolicyArgs;
use crate::audit;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::place;

#[derive(Serialize)]
struct Shown {
    bin_secs: u64,
    min_age_secs: u64,
}

/// Shows what a server lets its clients destroy, and changes it.
pub fn run(context: &Context<'_>, args: &PolicyArgs) -> Result<Outcome> {
    let named = context.repository_path()?;
    if place::is_address(named) {
        return Err(Error::Usage(format!(
            "{} is on another host; its policy is set there: `vbk --repo DIR policy`",
            named.display()
        )));
    }
    let directory = Directory::open(named).map_err(|error| context.explain(error, named))?;
    let before = Policy::load(directory.name())?;
    let secs = |given: Option<Duration>, before| given.map_or(before, |time| time.as_secs());
    let policy = Policy {
        bin_secs: secs(args.bin, before.bin_secs),
        min_age_secs: secs(args.min_age, before.min_age_secs),
    };
    if policy != before {
        let what = format!("policy: {}", text_of(&policy));
        audit::noted(&directory, &what, &[], || Ok(policy.save(directory.name())?))?;
    }
    context.print(format_args!("{}\n", text_of(&policy)));
    context.json_result(&Shown {
        bin_secs: policy.bin_secs,
        min_age_secs: policy.min_age_secs,
    })?;
    Ok(Outcome::Done)
}

fn text_of(policy: &Policy) -> String {
    let time = |seconds| match seconds {
        0 => "0".to_owned(),
        seconds if seconds % 86_400 == 0 => format!("{}d", seconds / 86_400),
        seconds => format!("{seconds}s"),
    };
    format!("bin {}, min-age {}", time(policy.bin_secs), time(policy.min_age_secs))
}
