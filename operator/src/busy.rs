//! The time that a future itself takes, without what it waits for.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// Runs a future and adds up how long it was polled.
pub fn measured<F: Future>(future: F) -> Measured<F> {
    Measured { future: Box::pin(future), busy: Duration::ZERO }
}

/// A future whose output comes with the time it took.
pub struct Measured<F> {
    future: Pin<Box<F>>,
    busy: Duration,
}

impl<F: Future> Future for Measured<F> {
    type Output = (F::Output, Duration);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let began = Instant::now();
        let polled = self.future.as_mut().poll(context);
        self.busy += began.elapsed();
        polled.map(|output| (output, self.busy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_is_not_counted_and_work_is() {
        let (value, idle) = measured(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            7
        })
        .await;
        assert_eq!(value, 7);
        let ((), busy) = measured(async { std::thread::sleep(Duration::from_millis(50)) }).await;
        assert!(idle < Duration::from_millis(50) && busy >= Duration::from_millis(50), "{idle:?} {busy:?}");
    }
}
