//! Threads of ours, and what they tell each other: started in one way and told in one way, so that the program has the means for
//! it once, and not once for every kind of answer.
//!
//! Not here: what they do. Who starts one waits no longer than he may, and one that waits for ever ends with the process.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// Starts one. Whether it could be: the machine, and our control group, have as many as they may have.
pub(crate) fn start(work: impl FnOnce() + Send + 'static) -> bool {
    let work: Box<dyn FnOnce() + Send> = Box::new(work);
    std::thread::Builder::new().spawn(work).is_ok()
}

/// How many processors there are for this thread.
pub(crate) fn processors() -> usize {
    let may_use = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let count = (0..CpuSet::count())
        .filter(|cpu| may_use.is_set(*cpu) == Ok(true))
        .count();
    count.max(1)
}

/// What goes through every channel.
type Parcel = Box<dyn Any + Send>;

/// The end of a channel that tells.
pub(crate) struct Sender<T>(mpsc::Sender<Parcel>, PhantomData<fn(T)>);

impl<T: Send + 'static> Sender<T> {
    /// Whether somebody may hear it.
    pub(crate) fn send(&self, it: T) -> bool {
        self.0.send(Box::new(it)).is_ok()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender(self.0.clone(), PhantomData)
    }
}

/// The end that hears.
pub(crate) struct Receiver<T>(mpsc::Receiver<Parcel>, PhantomData<fn() -> T>);

impl<T: 'static> Receiver<T> {
    /// What comes next; None where nothing comes in that time, or nobody has the other end any more.
    pub(crate) fn receive(&self, within: Duration) -> Option<T> {
        opened(self.0.recv_timeout(within).ok()?)
    }
}

impl<T: 'static> Iterator for Receiver<T> {
    type Item = T;

    /// What comes next, whenever that is; None where nobody has the other end any more.
    fn next(&mut self) -> Option<T> {
        opened(self.0.recv().ok()?)
    }
}

fn opened<T: 'static>(parcel: Parcel) -> Option<T> {
    parcel.downcast().ok().map(|it| *it)
}

/// A channel without a bound.
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel();
    (Sender(sender, PhantomData), Receiver(receiver, PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_tells_is_heard_in_its_order_and_then_nothing_more() {
        let (sender, receiver) = channel();
        let another = sender.clone();
        let is_there = start(move || {
            assert!(sender.send(7) && another.send(8));
        });
        assert!(is_there);
        assert_eq!(receiver.collect::<Vec<i32>>(), [7, 8]);
        let (sender, receiver) = channel::<String>();
        assert_eq!(receiver.receive(Duration::from_millis(1)), None);
        drop(receiver);
        assert!(!sender.send("nobody".to_owned()));
    }

    #[test]
    fn there_is_a_processor_at_least() {
        assert!(processors() >= 1);
    }
}
