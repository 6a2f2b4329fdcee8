//! Answers the questions of a client.

mod audit;
mod clients;
mod crowd;
#[cfg(test)]
mod hostile;
mod key;
mod limited;
mod listen;
mod local;
mod owned;
mod policy;
mod quota;
mod registry;
mod rights;
mod session;
mod status;
mod stores;
mod tls;
mod tokens;
mod until;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use vbk_repo::repository::home::Home;

use crate::message::Fault;
use crate::status::Way;

pub use audit::{AuditLog, Who};
pub use clients::{Open, Served};
pub use key::load_or_make as load_or_make_key;
pub use limited::Admission;
pub use listen::Server;
pub use policy::Policy;
pub use quota::Quota;
pub use rights::Allowed;
pub use session::Make;
pub use status::connected;
pub use tokens::{Entry as TokenEntry, Tokens};

use registry::{Registered, Registries};

/// Time for answers that nobody waits for any more.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// Serves a client on the process's standard input and output until it hangs up. Nothing else may use these. A home that could
/// not be opened is an error that the client shows. What the client changes gets into the audit log of the repository.
///
/// `make` makes the repository where there is none, for a client that asks for it. It counts for an administrator alone.
pub fn serve_stdio(home: vbk_repo::Result<Arc<dyn Home>>, admission: &Admission, make: Arc<Make>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let registries = Arc::new(Registries::default());
    runtime.spawn(Arc::clone(&registries).keep_published());
    let mut registered = Registered::nobody();
    let home = home.and_then(|home| {
        let log = home.name().to_owned();
        registered = registries.enter(&log, admission.visitor(Way::Ssh));
        limited::limit(home, admission, Some(&log))
    });
    let home = home.map_err(|error| Fault::from(&error));
    let served = runtime.block_on(session::run(
        home.as_ref(),
        admission.rights,
        &session::Memory::new(),
        session::Visit {
            registered,
            make: admission.is_administrator.then_some(make),
        },
        std::future::pending(),
        tokio::io::stdin(),
        tokio::io::stdout(),
    ));
    // Answers in the making end in order; a thread that still reads standard input is not waited for.
    runtime.shutdown_timeout(LAST_ANSWERS);
    match served {
        // A client that ends in the midst of a message has said why on its own side, where this text would go too.
        Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) => {
            tracing::debug!("the client is gone: {error}");
            Ok(())
        }
        served => served,
    }
}

/// Serves this process itself on a stream, with all rights of one that can write to the directory.
pub(crate) async fn serve_own(
    home: &Arc<dyn Home>,
    read: impl AsyncRead + Unpin,
    write: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let (memory, visit) = (session::Memory::new(), session::Visit::of_nobody());
    session::run(
        Ok(home),
        Allowed::Trusted,
        &memory,
        visit,
        std::future::pending(),
        read,
        write,
    )
    .await
}

/// Serves a client on a stream until it hangs up, and closes the stores that it left open. Without an audit log: for tests.
pub async fn serve(
    home: &Arc<dyn Home>,
    allowed: Allowed,
    read: impl AsyncRead + Unpin,
    write: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let admission = Admission {
        who: Who::default(),
        rights: allowed,
        guests: Vec::new(),
        is_administrator: false,
        quota: Quota::default(),
    };
    let home = limited::limit(Arc::clone(home), &admission, None).expect("all guests are no limit");
    let (memory, visit) = (session::Memory::new(), session::Visit::of_nobody());
    session::run(Ok(&home), allowed, &memory, visit, std::future::pending(), read, write).await
}
