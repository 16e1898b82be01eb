//! Slows down clients whose requests are refused all the time. A refusal is cheap, but a client that repeats it as fast as it can still takes
//! a core from the steps of the engine. Beyond a burst, refusals are sent at an even rate: those of a key for each key, and those of
//! requests of which no key is known for each address. A limit for each connection would not help, since a client can open many.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;

use crate::connections::network;

/// Refusals of a key or an address that are sent at once.
const MAX_BURST: u32 = 100;
/// The time between two refusals of a key or an address beyond the burst.
const INTERVAL: Duration = Duration::from_millis(10);
/// The longest time that a refusal is held back.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// The most addresses with refusals that are remembered.
const MAX_ADDRESSES: usize = 4096;
/// Routes whose status 503 reports the server's health. It refuses nothing.
const HEALTH: [&str; 2] = ["/health", "/ready"];

/// Who waits for a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Payer {
    /// A key of the server, by its name.
    Key(String),
    /// The network of an address.
    Address(IpAddr),
    /// All addresses that are not remembered.
    OtherAddresses,
}

impl Payer {
    /// The key of a request, else its address, else all that have neither.
    pub fn of(key: Option<String>, address: Option<IpAddr>) -> Payer {
        let address = || address.map(|address| Payer::Address(network(address)));
        key.map(Payer::Key)
            .or_else(address)
            .unwrap_or(Payer::OtherAddresses)
    }
}

/// Whether the response of `route` with this status refuses a request: every error does, whatever its reason and wherever it is found.
pub(crate) fn is_refusal(route: &str, status: StatusCode) -> bool {
    let reports_health = status == StatusCode::SERVICE_UNAVAILABLE && HEALTH.contains(&route);
    (status.is_client_error() || status.is_server_error()) && !reports_health
}

/// See the module.
#[derive(Default)]
pub(crate) struct RefusalPace(Mutex<Payers>);

/// When a key or an address has no refusals left over.
#[derive(Default)]
struct Payers {
    /// Only keys that exist are counted, so it is as small as the list of keys.
    keys: HashMap<String, Instant>,
    addresses: HashMap<IpAddr, Instant>,
    other_addresses: Option<Instant>,
}

impl RefusalPace {
    /// Counts a refusal, and returns how long it must be held back.
    pub fn delay(&self, payer: Payer, now: Instant) -> Duration {
        let mut payers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = payers.until(payer, now);
        let burst = INTERVAL * MAX_BURST;
        *until = ((*until).max(now) + INTERVAL).min(now + burst + MAX_DELAY);
        (*until).saturating_duration_since(now + burst)
    }
}

impl Payers {
    fn until(&mut self, payer: Payer, now: Instant) -> &mut Instant {
        match payer {
            Payer::Key(key) => {
                if !self.keys.contains_key(&key) {
                    self.keys.retain(|_, until| *until > now);
                }
                self.keys.entry(key).or_insert(now)
            }
            Payer::Address(address) => {
                let is_new = !self.addresses.contains_key(&address);
                if is_new && self.addresses.len() >= MAX_ADDRESSES {
                    self.addresses.retain(|_, until| *until > now);
                    // More addresses than that are an attack, and they share one rate.
                    if self.addresses.len() >= MAX_ADDRESSES {
                        return self.other_addresses.get_or_insert(now);
                    }
                }
                self.addresses.entry(address).or_insert(now)
            }
            Payer::OtherAddresses => self.other_addresses.get_or_insert(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Payer {
        Payer::of(Some(name.to_owned()), Some(IpAddr::from([10, 0, 0, 1])))
    }

    #[test]
    fn refusals_of_a_key_are_held_back_beyond_a_burst() {
        let pace = RefusalPace::default();
        let now = Instant::now();
        for _ in 0..MAX_BURST {
            assert_eq!(pace.delay(key("hostile"), now), Duration::ZERO);
        }
        assert_eq!(pace.delay(key("hostile"), now), INTERVAL);
        assert_eq!(pace.delay(key("hostile"), now), 2 * INTERVAL);
        assert_eq!(pace.delay(key("other"), now), Duration::ZERO);
        // One for each interval goes out at once.
        let later = now + 3 * INTERVAL;
        assert_eq!(pace.delay(key("hostile"), later), Duration::ZERO);
        assert_eq!(pace.delay(key("hostile"), later), INTERVAL);
    }

    #[test]
    fn refusal_is_held_back_for_a_second_at_most_and_quiet_keys_are_forgotten() {
        let pace = RefusalPace::default();
        let now = Instant::now();
        let longest = (0..10_000).map(|_| pace.delay(key("hostile"), now)).max();
        assert_eq!(longest, Some(MAX_DELAY));
        assert_eq!(
            pace.delay(key("hostile"), now + 2 * MAX_DELAY),
            Duration::ZERO
        );
        pace.delay(key("other"), now + Duration::from_secs(60));
        assert_eq!(pace.0.lock().unwrap().keys.len(), 1);
    }

    #[test]
    fn refusals_without_a_key_are_held_back_by_network() {
        let pace = RefusalPace::default();
        let now = Instant::now();
        let of = |address: [u16; 8]| Payer::of(None, Some(IpAddr::from(address)));
        for host in 0..MAX_BURST as u16 {
            let address = of([0x2001, 0xdb8, 0, 1, 0, 0, 0, host]);
            assert_eq!(pace.delay(address, now), Duration::ZERO);
        }
        let same = of([0x2001, 0xdb8, 0, 1, 7, 7, 7, 7]);
        assert_eq!(pace.delay(same, now), INTERVAL);
        let other = of([0x2001, 0xdb8, 0, 2, 0, 0, 0, 0]);
        assert_eq!(pace.delay(other, now), Duration::ZERO);
        // A key does not pay for the address that it is used from.
        assert_eq!(pace.delay(key("valid"), now), Duration::ZERO);
    }

    #[test]
    fn addresses_beyond_the_table_share_one_rate() {
        let pace = RefusalPace::default();
        let now = Instant::now();
        let of = |number: u32| Payer::of(None, Some(IpAddr::from(number.to_be_bytes())));
        for number in 0..MAX_ADDRESSES as u32 + MAX_BURST {
            assert_eq!(pace.delay(of(number), now), Duration::ZERO);
        }
        assert_eq!(pace.delay(of(u32::MAX), now), INTERVAL);
        assert_eq!(pace.delay(Payer::of(None, None), now), 2 * INTERVAL);
        assert_eq!(pace.0.lock().unwrap().addresses.len(), MAX_ADDRESSES);
        // Addresses are forgotten when they have been quiet.
        assert_eq!(pace.delay(of(u32::MAX), now + INTERVAL), Duration::ZERO);
        assert_eq!(pace.0.lock().unwrap().addresses.len(), 1);
    }

    #[test]
    fn every_error_is_a_refusal_except_a_report_of_health() {
        for (route, status, expected) in [
            ("/v1/models", 200, false),
            ("none", 404, true),
            ("/v1/models", 503, true),
            ("/health", 405, true),
            ("/ready", 421, true),
            ("/health", 503, false),
            ("/ready", 503, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(is_refusal(route, status), expected, "{route} {status}");
        }
    }
}
