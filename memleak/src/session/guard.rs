//! What was collected is reported, whatever happens while it is collected.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

use log::warn;

use super::SessionError;

/// Runs a part of the session to its end. A panic in it becomes an error, as any other that ends
/// the part: what follows (the last report, detaching) is still done. It has been told already.
pub(super) async fn guarded<T>(
    part: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    let mut part = pin!(part);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| part.as_mut().poll(context))) {
        Ok(polled) => polled,
        Err(_) => Poll::Ready(Err(SessionError::Internal)),
    })
    .await
}

/// One error of two parts of which the second was done although the first had failed: the first.
/// What the second says besides is a warning.
pub(super) fn first_error<A, B>(
    first: Result<A, SessionError>,
    second: Result<B, SessionError>,
    what: &str,
) -> Result<B, SessionError> {
    match (first, second) {
        (Ok(_), second) => second,
        (Err(first), Ok(_)) => Err(first),
        (Err(first), Err(second)) => {
            if first.to_string() != second.to_string() {
                warn!("{what}: {second}");
            }
            Err(first)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn run<T>(part: impl Future<Output = Result<T, SessionError>>) -> Result<T, SessionError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(guarded(part))
    }

    fn system(what: &'static str) -> SessionError {
        SessionError::System(what, io::ErrorKind::Other.into())
    }

    #[test]
    fn a_panic_is_an_error_also_after_waiting() {
        let panics = run(async {
            tokio::task::yield_now().await;
            Ok("seven".parse::<u32>().expect("as if something were wrong"))
        });
        assert!(matches!(panics, Err(SessionError::Internal)), "{panics:?}");
        assert_eq!(run(async { Ok(7) }).expect("nothing wrong"), 7);
        assert!(matches!(run::<u32>(async { Err(system("x")) }), Err(SessionError::System("x", _))));
    }

    #[test]
    fn the_first_error_is_the_one_that_counts() {
        let what = "the last report is missing";
        assert_eq!(first_error(Ok(1), Ok(2), what).expect("none"), 2);
        for (first, second) in [(Err(system("a")), Ok(2)), (Err(system("a")), Err(system("b")))] {
            let error = first_error::<u32, u32>(first, second, what).expect_err("the first");
            assert!(matches!(error, SessionError::System("a", _)));
        }
        let error = first_error::<u32, u32>(Ok(1), Err(system("b")), what).expect_err("the second");
        assert!(matches!(error, SessionError::System("b", _)));
    }
}
