//! Bounds of what clients may take before and after a server knows them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at a time.
const MAX_CLIENTS: usize = 1024;
/// Those among them that have not said who they are.
const MAX_STRANGERS: usize = 64;
/// The same from one address.
const MAX_STRANGERS_OF_ONE: u32 = 16;
/// Failed tries from one address in [`FAILURES_FOR`], after which no more are heard.
const MAX_FAILURES: u32 = 20;
const FAILURES_FOR: Duration = Duration::from_secs(60);
/// Addresses that are remembered.
const MAX_ADDRESSES: usize = 4096;

/// All clients of a server.
pub(super) struct Crowd {
    clients: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    addresses: Arc<Mutex<HashMap<IpAddr, Address>>>,
}

struct Address {
    strangers: u32,
    failures: u32,
    since: Instant,
}

/// The place of a connection that is counted until it is dropped.
pub(super) struct Place {
    _client: OwnedSemaphorePermit,
    stranger: Option<Stranger>,
}

/// The place of a client that has not said who it is.
struct Stranger {
    _permit: OwnedSemaphorePermit,
    address: Option<IpAddr>,
    addresses: Arc<Mutex<HashMap<IpAddr, Address>>>,
}

impl Crowd {
    pub(super) fn new() -> Self {
        Self {
            clients: Arc::new(Semaphore::new(MAX_CLIENTS)),
            strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
            addresses: Arc::default(),
        }
    }

    /// Takes in a client from an address; `None` if there are too many, or too many tries failed from there.
    pub(super) fn enter(&self, from: Option<IpAddr>, now: Instant) -> Option<Place> {
        let client = Arc::clone(&self.clients).try_acquire_owned().ok()?;
        let permit = Arc::clone(&self.strangers).try_acquire_owned().ok()?;
        let address = from.map(network_of);
        if let Some(address) = address {
            let mut addresses = self.addresses.lock();
            if addresses.len() >= MAX_ADDRESSES {
                // Who comes from more addresses than that is stopped by nothing here.
                addresses.retain(|_, known| known.strangers > 0);
            }
            let known = addresses.entry(address).or_insert(Address {
                strangers: 0,
                failures: 0,
                since: now,
            });
            if now.duration_since(known.since) >= FAILURES_FOR {
                (known.failures, known.since) = (0, now);
            }
            if known.strangers >= MAX_STRANGERS_OF_ONE || known.failures >= MAX_FAILURES {
                return None;
            }
            known.strangers += 1;
        }
        Some(Place {
            _client: client,
            stranger: Some(Stranger {
                _permit: permit,
                address,
                addresses: Arc::clone(&self.addresses),
            }),
        })
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
            && let Some(known) = addresses.lock().get_mut(address)
        {
            known.failures = known.failures.saturating_add(1);
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let Some(address) = self.address else {
            return;
        };
        let mut addresses = self.addresses.lock();
        if let Some(known) = addresses.get_mut(&address) {
            known.strangers = known.strangers.saturating_sub(1);
            if known.strangers == 0 && known.failures == 0 {
                addresses.remove(&address);
            }
        }
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
        assert!(crowd.enter(from("2001:db8::ffff"), now).is_none());
        let mut other = crowd.enter(from("192.0.2.1"), now).expect("has room");
        drop(held);
        assert!(crowd.enter(from("2001:db8::ffff"), now).is_some());
        other.known();
        assert_eq!(crowd.addresses.lock().len(), 0, "nothing is left of good clients");
    }

    #[test]
    fn strangers_leave_room_for_clients_that_are_known() {
        let crowd = Crowd::new();
        let now = Instant::now();
        let enter = |number: usize| crowd.enter(from(&format!("192.0.{}.1", number)), now);
        let mut held: Vec<_> = (0..MAX_STRANGERS)
            .map(|number| enter(number).expect("has room"))
            .collect();
        assert!(enter(MAX_STRANGERS).is_none());
        held.iter_mut().for_each(Place::known);
        assert!(enter(MAX_STRANGERS).is_some());
    }

    #[test]
    fn an_address_is_not_heard_for_a_while_after_many_failures() {
        let crowd = Crowd::new();
        let start = Instant::now();
        let address = from("192.0.2.1");
        for _ in 0..MAX_FAILURES {
            crowd.enter(address, start).expect("is heard").failed();
        }
        assert!(crowd.enter(address, start).is_none());
        assert!(
            crowd.enter(from("::ffff:192.0.2.1"), start).is_none(),
            "the same address"
        );
        assert!(crowd.enter(from("192.0.2.2"), start).is_some());
        assert!(crowd.enter(address, start + FAILURES_FOR).is_some());
    }
}
