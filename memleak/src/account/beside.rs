//! Accounts that a thread makes beside the reports: over many millions of blocks one takes seconds,
//! in which nothing else would be done.

use std::{
    mem::replace,
    thread::{self, JoinHandle},
};

use log::debug;

use super::{AccountedProcess, Accounts, Memory, TableState};

/// An account of more records than this takes longer than a report may wait for.
const BESIDE: u64 = 2 << 20;

/// The accounts, and who makes one at the moment.
#[derive(Debug)]
pub(crate) enum Accounting {
    /// Nobody.
    Idle(Box<Accounts>),
    /// A thread. Address spaces whose program was replaced meanwhile.
    Busy(JoinHandle<(Box<Accounts>, Option<Memory>)>, Vec<u32>),
    /// A thread could not, and has kept them: there are none any more.
    Broken,
}

impl Accounting {
    pub(crate) fn new(accounts: Accounts) -> Self {
        Self::Idle(Box::new(accounts))
    }

    /// A target has replaced its program.
    pub(crate) fn replaced(&mut self, space: u32) {
        match self {
            Self::Idle(accounts) => accounts.replaced(space),
            Self::Busy(_, replaced) => replaced.push(space),
            Self::Broken => {}
        }
    }

    /// The account that a thread was making, if it is done; if it is not, only `wait` waits for it.
    pub(crate) fn take_made(&mut self, wait: bool) -> Option<Memory> {
        match replace(self, Self::Broken) {
            Self::Busy(thread, replaced) if wait || thread.is_finished() => {
                let (mut accounts, memory) = thread.join().ok()?;
                replaced.into_iter().for_each(|space| accounts.replaced(space));
                *self = Self::Idle(accounts);
                memory
            }
            as_it_was => {
                *self = as_it_was;
                None
            }
        }
    }

    /// The account of these processes, or `None` while a thread makes it. In the last report
    /// nothing is left to a thread.
    pub(crate) fn make(
        &mut self,
        processes: Vec<AccountedProcess>,
        state: TableState,
        is_final: bool,
    ) -> Option<Memory> {
        match replace(self, Self::Broken) {
            Self::Idle(mut accounts) if state.records > BESIDE && !is_final => {
                let thread = thread::Builder::new().name("account".to_owned());
                let made = move || {
                    let memory = accounts.make(processes, state);
                    (accounts, memory)
                };
                match thread.spawn(made) {
                    Ok(thread) => *self = Self::Busy(thread, Vec::new()),
                    Err(error) => debug!("no account of memory any more: no thread for it: {error}"),
                }
                None
            }
            Self::Idle(mut accounts) => {
                let memory = accounts.make(processes, state);
                *self = Self::Idle(accounts);
                memory
            }
            as_it_was => {
                *self = as_it_was;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{account::Allocators, objects::ObjectStore};

    const FEW: TableState = TableState { version: None, records: BESIDE };
    const MANY: TableState = TableState { version: None, records: BESIDE + 1 };

    /// This process, of which no block is known.
    fn this() -> Vec<AccountedProcess> {
        let (pid, allocators) = (std::process::id(), Allocators::default());
        vec![AccountedProcess { pid, space: 1, allocators, nameless: None, known: Default::default() }]
    }

    fn accounting() -> Accounting {
        Accounting::new(Accounts::new(ObjectStore::default(), 1))
    }

    #[test]
    fn an_account_of_few_is_made_at_once_and_the_last_one_too() {
        for (state, is_final) in [(FEW, false), (MANY, true)] {
            let mut accounting = accounting();
            let memory = accounting.make(this(), state, is_final);
            assert!(memory.is_some_and(|memory| memory.rss > 0), "{memory:?}");
            assert!(matches!(accounting, Accounting::Idle(_)));
        }
    }

    #[test]
    fn an_account_of_many_is_there_later() {
        let mut accounting = accounting();
        assert_eq!(accounting.make(this(), MANY, false), None);
        assert!(matches!(accounting, Accounting::Busy(..)));
        accounting.replaced(1);
        let memory = accounting.take_made(true);
        assert!(memory.is_some_and(|memory| memory.rss > 0), "{memory:?}");
        // What was replaced meanwhile is new: nothing of it is from before.
        let memory = accounting.make(this(), FEW, false).expect("an account");
        assert_eq!(memory.before_attach, 0);
        assert_eq!(accounting.take_made(true), None, "it was given already");
    }

    #[test]
    fn nobody_else_is_asked_while_a_thread_is_at_it() {
        let mut accounting = accounting();
        assert_eq!(accounting.make(this(), MANY, false), None);
        assert_eq!(accounting.make(this(), FEW, false), None);
        assert!(accounting.take_made(true).is_some());
    }
}
