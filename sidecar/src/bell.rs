//! What tasks of one thread wait for together: a phase of a drain, another policy. Whoever waits looks at a number; tokio's own notifications take a lock each time that they
//! are polled, and most of what is polled waits for something else just then.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::multiplex::{note, wake};

/// Places that are kept, whoever waits.
const KEPT: usize = 64;

/// It rings for all who wait.
#[derive(Default)]
pub struct Bell {
    rings: Cell<u64>,
    waiting: RefCell<Slab<Waker>>,
}

impl Bell {
    /// Wakes all who wait.
    pub fn ring(&self) {
        self.rings.set(self.rings.get() + 1);
        for (_, waiting) in &*self.waiting.borrow() {
            waiting.wake_by_ref();
        }
    }

    /// Gives back room that many took who wait no more. It goes through all.
    pub fn tidy(&self) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.capacity() > KEPT && waiting.len() < waiting.capacity() / 4 {
            waiting.shrink_to_fit();
        }
    }

    /// Waits for the next time from now on that it rings.
    pub fn next(&self) -> Waiting<'_> {
        Waiting { bell: self, heard: self.rings.get(), place: None }
    }

    /// Waits for the first time that it rings, which may have been before.
    pub fn first(&self) -> Waiting<'_> {
        Waiting { bell: self, heard: 0, place: None }
    }
}

/// One who waits for a [`Bell`]. Kept, it need not say again and again that it does.
pub struct Waiting<'a> {
    bell: &'a Bell,
    /// How often it had rung.
    heard: u64,
    place: Option<usize>,
}

impl Waiting<'_> {
    /// Resolves when it has rung, now and from then on. Cancel-safe.
    pub async fn rung(&mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    /// See [`Self::rung`].
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.bell.rings.get() != self.heard {
            return Poll::Ready(());
        }
        let mut waiting = self.bell.waiting.borrow_mut();
        match self.place {
            Some(place) => waiting[place].clone_from(cx.waker()),
            None => self.place = Some(waiting.insert(cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.bell.waiting.borrow_mut().remove(place);
        }
    }
}

/// A word to one task, which is kept until that one hears it.
#[derive(Default)]
pub struct Word {
    said: Cell<bool>,
    listener: RefCell<Option<Waker>>,
}

impl Word {
    /// Has whoever listens hear it.
    pub fn say(&self) {
        self.said.set(true);
        wake(&mut self.listener.borrow_mut());
    }

    /// Resolves when it was said, once for each time or for several. Cancel-safe; one task listens.
    pub async fn heard(&self) {
        poll_fn(|cx| {
            if self.said.take() {
                return Poll::Ready(());
            }
            note(&mut self.listener.borrow_mut(), cx);
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn all_who_wait_are_woken_and_those_who_come_later_know() {
        let (bell, counts) = (Bell::default(), [Arc::<Count>::default(), Arc::default()]);
        let wakers = counts.clone().map(Waker::from);
        let mut waiting = [bell.next(), bell.first()];
        for (waiting, waker) in waiting.iter_mut().zip(&wakers) {
            for _ in 0..3 {
                assert!(waiting.poll(&Context::from_waker(waker)).is_pending());
            }
        }
        bell.ring();
        assert_eq!(counts.each_ref().map(|count| count.0.load(Relaxed)), [1, 1], "each once");
        let context = Context::from_waker(Waker::noop());
        assert!(waiting.iter_mut().all(|waiting| waiting.poll(&context).is_ready() && waiting.poll(&context).is_ready()));
        assert!(bell.first().poll(&context).is_ready(), "it has rung before");
        assert!(bell.next().poll(&context).is_pending(), "it is to ring again");
        drop(waiting);
        assert!(bell.waiting.borrow().is_empty(), "who goes is forgotten");
        let mut many: Vec<_> = (0..10 * KEPT).map(|_| bell.next()).collect();
        assert!(many.iter_mut().all(|waiting| waiting.poll(&context).is_pending()));
        many.truncate(3);
        bell.tidy();
        assert!(bell.waiting.borrow().capacity() <= KEPT, "and so is the room");
    }

    #[test]
    fn whoever_waits_is_woken_where_it_is_polled_last() {
        let (bell, counts) = (Bell::default(), [Arc::<Count>::default(), Arc::default()]);
        let mut waiting = bell.next();
        for waker in counts.clone().map(Waker::from) {
            assert!(waiting.poll(&Context::from_waker(&waker)).is_pending());
        }
        bell.ring();
        assert_eq!(counts.each_ref().map(|count| count.0.load(Relaxed)), [0, 1]);
    }

    #[test]
    fn a_word_is_kept_until_it_is_heard() {
        let (word, count) = (Word::default(), Arc::<Count>::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        word.say();
        assert!(pin!(word.heard()).poll(&mut context).is_ready());
        let mut next = pin!(word.heard());
        assert!(next.as_mut().poll(&mut context).is_pending());
        word.say();
        word.say();
        assert_eq!(count.0.load(Relaxed), 1);
        assert!(next.poll(&mut context).is_ready());
        word.say();
        assert_eq!(count.0.load(Relaxed), 1, "nobody listens: whoever says it to itself goes on");
        assert!(pin!(word.heard()).poll(&mut context).is_ready());
        assert!(pin!(word.heard()).poll(&mut context).is_pending(), "it was said twice, and heard at once");
    }
}
