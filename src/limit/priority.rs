//! Idle I/O class and niceness for the reading threads: they get only what no other thread wants.
//!
//! Only threads that call [`lower_this_thread`] change, and the threads and programs that they start. So such a thread
//! must not start a program that starts a guest's database again.

use crate::sys;

/// Gives this thread the idle I/O class (which only the schedulers bfq and mq-deadline honour) and niceness 19. An
/// unprivileged thread can't undo this, so it stays until the thread ends. A refusal is not an error.
pub(crate) fn lower_this_thread() {
    if let Err(error) = sys::set_idle_io_class() {
        tracing::debug!(%error, "can't set the idle I/O class");
    }
    if let Err(error) = sys::set_nice(19) {
        tracing::debug!(%error, "can't set the niceness");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nineteenth word of proc_pid_stat(5) is the niceness.
    fn nice_of_this_thread() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("is there");
        let (_, rest) = stat.rsplit_once(") ").expect("a name");
        rest.split(' ')
            .nth(16)
            .and_then(|word| word.parse().ok())
            .expect("a number")
    }

    #[test]
    fn only_the_calling_thread_is_lowered() {
        let before = nice_of_this_thread();
        let lowered = std::thread::spawn(|| {
            lower_this_thread();
            (nice_of_this_thread(), sys::is_io_class_idle())
        });
        assert_eq!(lowered.join().expect("ends"), (19, true));
        assert_eq!(nice_of_this_thread(), before);
        assert!(!sys::is_io_class_idle());
    }
}
