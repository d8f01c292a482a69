//! Two futures at a time, without the macros that tokio has for it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// The one of two that was first.
#[derive(Debug)]
pub(super) enum Either<A, B> {
    A(A),
    B(B),
}

/// Waits for the first of two, of which the one named first is preferred; the other is dropped.
pub(super) async fn first<A, B>(
    a: impl Future<Output = A>,
    b: impl Future<Output = B>,
) -> Either<A, B> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|context| {
        if let Poll::Ready(answer) = a.as_mut().poll(context) {
            return Poll::Ready(Either::A(answer));
        }
        b.as_mut().poll(context).map(Either::B)
    })
    .await
}

/// Waits for both.
pub(super) async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let mut answers = (None, None);
    poll_fn(|context| {
        if answers.0.is_none() {
            if let Poll::Ready(answer) = a.as_mut().poll(context) {
                answers.0 = Some(answer);
            }
        }
        if answers.1.is_none() {
            if let Poll::Ready(answer) = b.as_mut().poll(context) {
                answers.1 = Some(answer);
            }
        }
        match (answers.0.take(), answers.1.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            partly => {
                answers = partly;
                Poll::Pending
            }
        }
    })
    .await
}
