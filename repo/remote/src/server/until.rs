//! A stream that ends when something happens.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// The stream `inner` until `end` completes, and then an error with the reason.
pub(super) struct Until<R, F> {
    pub(super) inner: R,
    pub(super) end: Pin<Box<F>>,
    pub(super) reason: Option<String>,
}

impl<R, F> Until<R, F> {
    pub(super) fn new(inner: R, end: F) -> Self {
        Self {
            inner,
            end: Box::pin(end),
            reason: None,
        }
    }
}

impl<R: AsyncRead + Unpin, F: Future<Output = String>> AsyncRead for Until<R, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.reason.is_none()
            && let Poll::Ready(reason) = this.end.as_mut().poll(context)
        {
            this.reason = Some(reason);
        }
        match &this.reason {
            Some(reason) => Poll::Ready(Err(io::Error::other(reason.clone()))),
            None => Pin::new(&mut this.inner).poll_read(context, buffer),
        }
    }
}
