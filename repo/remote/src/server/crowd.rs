//! Bounds of what clients may take before and after a server knows them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Connections at a time.
const MAX_CLIENTS: usize = 1024;
/// Those among them that have not said who they are.
const MAX_STRANGERS: usize = 64;
/// The same from one address.
const MAX_STRANGERS_OF_ONE: u32 = 16;
/// Connections that wait until they are heard: all hosts of a site may start at the same minute.
const MAX_WAITING: usize = 512;
/// The same from one address.
const MAX_WAITING_OF_ONE: u32 = 256;
/// Failed tries from one address in [`FAILURES_FOR`], after which no more are heard.
const MAX_FAILURES: u32 = 20;
const FAILURES_FOR: Duration = Duration::from_secs(60);
/// Addresses that are remembered.
const MAX_ADDRESSES: usize = 4096;

/// All clients of a server.
pub(super) struct Crowd {
    clients: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    addresses: Arc<Addresses>,
}

#[derive(Default)]
struct Addresses {
    known: Mutex<HashMap<IpAddr, Address>>,
    /// Notified when a stranger has left its place.
    left: Notify,
}

#[derive(Default)]
struct Address {
    strangers: u32,
    waiting: u32,
    failures: u32,
    since: Option<Instant>,
}

impl Address {
    fn is_unknown(&self) -> bool {
        self.strangers == 0 && self.waiting == 0
    }
}

impl Addresses {
    /// Counts less, and forgets an address of which nothing is known any more.
    fn count_down(&self, address: IpAddr, of: impl FnOnce(&mut Address) -> &mut u32) {
        let mut all = self.known.lock();
        if let Some(known) = all.get_mut(&address) {
            let count = of(known);
            *count = count.saturating_sub(1);
            if known.is_unknown() && known.failures == 0 {
                all.remove(&address);
            }
        }
    }
}

/// Reason for which a client has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Others have to say first who they are.
    Busy,
    /// There are too many clients, or too many tries failed.
    TooMany,
}

/// A connection that waits for its place, and is counted until this is dropped.
pub(super) struct Waiting {
    _permit: OwnedSemaphorePermit,
    address: Option<IpAddr>,
    addresses: Arc<Addresses>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            self.addresses.count_down(address, |known| &mut known.waiting);
        }
    }
}

/// The place of a connection that is counted until it is dropped.
pub(super) struct Place {
    _client: OwnedSemaphorePermit,
    stranger: Option<Stranger>,
}

/// The place of a client that has not said who it is.
struct Stranger {
    /// Given back before those that wait are woken.
    permit: Option<OwnedSemaphorePermit>,
    address: Option<IpAddr>,
    addresses: Arc<Addresses>,
}

impl Crowd {
    pub(super) fn new() -> Self {
        Self {
            clients: Arc::new(Semaphore::new(MAX_CLIENTS)),
            strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            addresses: Arc::default(),
        }
    }

    /// Takes in a client from an address.
    pub(super) fn enter(&self, from: Option<IpAddr>, now: Instant) -> Result<Place, Refused> {
        let client = Arc::clone(&self.clients).try_acquire_owned();
        let client = client.map_err(|_| Refused::TooMany)?;
        let permit = Arc::clone(&self.strangers).try_acquire_owned();
        let permit = permit.map_err(|_| Refused::Busy)?;
        let address = from.map(network_of);
        if let Some(address) = address {
            let mut addresses = self.addresses.known.lock();
            if addresses.len() >= MAX_ADDRESSES {
                // Who comes from more addresses than that is stopped by nothing here.
                addresses.retain(|_, known| !known.is_unknown());
            }
            let known = addresses.entry(address).or_default();
            let since = *known.since.get_or_insert(now);
            if now.duration_since(since) >= FAILURES_FOR {
                (known.failures, known.since) = (0, Some(now));
            }
            if known.failures >= MAX_FAILURES {
                return Err(Refused::TooMany);
            }
            if known.strangers >= MAX_STRANGERS_OF_ONE {
                return Err(Refused::Busy);
            }
            known.strangers += 1;
        }
        Ok(Place {
            _client: client,
            stranger: Some(Stranger {
                permit: Some(permit),
                address,
                addresses: Arc::clone(&self.addresses),
            }),
        })
    }

    /// Lets a client wait that was refused as others are being heard; `None` if too many wait.
    pub(super) fn queue(&self, from: Option<IpAddr>) -> Option<Waiting> {
        let permit = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        let address = from.map(network_of);
        if let Some(address) = address {
            let mut addresses = self.addresses.known.lock();
            let known = addresses.entry(address).or_default();
            if known.waiting >= MAX_WAITING_OF_ONE {
                return None;
            }
            known.waiting += 1;
        }
        Some(Waiting {
            _permit: permit,
            address,
            addresses: Arc::clone(&self.addresses),
        })
    }

    /// Waits for a place.
    pub(super) async fn enter_later(&self, from: Option<IpAddr>, _waiting: Waiting) -> Result<Place, Refused> {
        loop {
            let left = self.addresses.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            match self.enter(from, Instant::now()) {
                Err(Refused::Busy) => left.await,
                entered => return entered,
            }
        }
    }
}

impl Place {
    /// Notes that the server knows this client.
    pub(super) fn known(&mut self) {
        self.stranger = None;
    }

    /// Notes that this client could not prove who it is.
    pub(super) fn failed(&mut self) {
        if let Some(Stranger {
            address: Some(address),
            addresses,
            ..
        }) = &self.stranger
            && let Some(known) = addresses.known.lock().get_mut(address)
        {
            known.failures = known.failures.saturating_add(1);
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            self.addresses.count_down(address, |known| &mut known.strangers);
        }
        self.permit = None;
        self.addresses.left.notify_waiters();
    }
}

/// One customer has a whole /64 of IPv6 addresses.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn one_address_can_not_take_all_places() {
        let crowd = Crowd::new();
        let now = Instant::now();
        let held: Vec<_> = (0..MAX_STRANGERS_OF_ONE)
            .map(|host| {
                crowd
                    .enter(from(&format!("2001:db8::{host:x}")), now)
                    .expect("has room")
            })
            .collect();
        assert_eq!(crowd.enter(from("2001:db8::ffff"), now).err(), Some(Refused::Busy));
        let mut other = crowd.enter(from("192.0.2.1"), now).expect("has room");
        drop(held);
        assert!(crowd.enter(from("2001:db8::ffff"), now).is_ok());
        other.known();
        assert_eq!(crowd.addresses.known.lock().len(), 0, "nothing is left of good clients");
    }

    #[test]
    fn strangers_leave_room_for_clients_that_are_known() {
        let crowd = Crowd::new();
        let now = Instant::now();
        let enter = |number: usize| crowd.enter(from(&format!("192.0.{}.1", number)), now);
        let mut held: Vec<_> = (0..MAX_STRANGERS)
            .map(|number| enter(number).expect("has room"))
            .collect();
        assert!(enter(MAX_STRANGERS).is_err());
        held.iter_mut().for_each(Place::known);
        assert!(enter(MAX_STRANGERS).is_ok());
    }

    #[test]
    fn an_address_is_not_heard_for_a_while_after_many_failures() {
        let crowd = Crowd::new();
        let start = Instant::now();
        let address = from("192.0.2.1");
        for _ in 0..MAX_FAILURES {
            crowd.enter(address, start).expect("is heard").failed();
        }
        assert_eq!(crowd.enter(address, start).err(), Some(Refused::TooMany));
        assert!(
            crowd.enter(from("::ffff:192.0.2.1"), start).is_err(),
            "the same address"
        );
        assert!(crowd.enter(from("192.0.2.2"), start).is_ok());
        assert!(crowd.enter(address, start + FAILURES_FOR).is_ok());
    }

    #[test]
    fn those_who_come_at_once_wait_for_each_other_and_one_address_can_not_fill_the_queue() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let crowd = Crowd::new();
        let address = from("192.0.2.1");
        let enter = || crowd.enter(address, Instant::now());
        let mut held: Vec<_> = (0..MAX_STRANGERS_OF_ONE).map(|_| enter().expect("has room")).collect();
        assert_eq!(enter().err(), Some(Refused::Busy));
        let waiting: Vec<_> = (0..MAX_WAITING_OF_ONE)
            .map(|_| crowd.queue(address).expect("may wait"))
            .collect();
        assert!(crowd.queue(address).is_none());
        assert!(crowd.queue(from("192.0.2.2")).is_some());
        runtime.block_on(async {
            for waiting in waiting {
                let entering = crowd.enter_later(address, waiting);
                tokio::pin!(entering);
                tokio::select! {
                    biased;
                    _ = &mut entering => panic!("there is no place"),
                    () = tokio::task::yield_now() => {}
                }
                held.pop();
                held.push(entering.await.expect("gets the place"));
            }
        });
        held.clear();
        assert_eq!(crowd.addresses.known.lock().len(), 0);
        assert_eq!(crowd.waiting.available_permits(), MAX_WAITING);
    }
}
