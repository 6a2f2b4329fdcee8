//! Answers the questions of a client.

mod door;
mod local;
mod session;
mod stores;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::directory::shared::Shared;
use vbk_repo::repository::home::Home;

use crate::message::Fault;
use local::Socket;

/// Time for answers that nobody waits for any more.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// Time between two looks whether the process is to end.
const STOP_POLL: Duration = Duration::from_millis(100);

/// What a client may do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allowed {
    /// Read everything.
    Read,
    /// And add backups.
    Add,
    /// And remove and change them.
    Everything,
    /// The same, and what it puts is not checked: it could write to the directory itself.
    Trusted,
}

/// Serves a client on the process's standard input and output until it hangs up. Nothing else may use these. A home that could
/// not be opened is an error that the client shows.
pub fn serve_stdio(home: vbk_repo::Result<Arc<dyn Home>>, allowed: Allowed) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let home = home.map_err(|error| Fault::from(&error));
    let served = runtime.block_on(session::run(
        home.as_ref(),
        allowed,
        tokio::io::stdin(),
        tokio::io::stdout(),
    ));
    // Answers in the making end in order; a thread that still reads standard input is not waited for.
    runtime.shutdown_timeout(LAST_ANSWERS);
    served
}

/// Has a directory open for all writers of this machine, on the socket in it. Ends when `stop` is set, and when nobody was
/// connected for `idle`, if that is given. `ready` is called when the socket is there. [`io::ErrorKind::AddrInUse`] if another
/// process does that already.
pub fn serve_directory(
    directory: Arc<Directory>,
    idle: Option<Duration>,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = Socket::bind(directory.name())?;
        ready();
        let shared = Arc::new(Shared::new(directory));
        let stopped = async {
            while !stop.load(Ordering::SeqCst) {
                tokio::time::sleep(STOP_POLL).await;
            }
        };
        tokio::select! {
            () = socket.serve(shared, idle) => {}
            () = stopped => {}
        }
        Ok::<_, io::Error>(())
    })?;
    runtime.shutdown_timeout(LAST_ANSWERS);
    Ok(())
}

/// Serves a client on a stream until it hangs up, and closes the stores that it left open.
pub async fn serve(
    home: &Arc<dyn Home>,
    allowed: Allowed,
    read: impl AsyncRead + Unpin,
    write: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    session::run(Ok(home), allowed, read, write).await
}
