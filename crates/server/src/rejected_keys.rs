//! Counts rejected API keys by address. An address that sends many is answered with 429. Its valid keys are served all the time, since a
//! proxy may have only one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::connections::network;

/// Rejected keys of an address in a row until it is limited.
const MAX_BURST: u32 = 20;
/// The time after which an address may send another key.
const INTERVAL: Duration = Duration::from_secs(3);
/// The most addresses that are remembered.
const MAX_ADDRESSES: usize = 4096;

/// See the module.
#[derive(Default)]
pub(crate) struct RejectedKeys {
    /// When the address has no rejected keys left over.
    until: Mutex<HashMap<IpAddr, Instant>>,
}

impl RejectedKeys {
    /// Counts a rejected key.
    ///
    /// # Errors
    /// The address has sent too many: the time until it may send another one.
    pub fn count(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let address = network(address);
        if until.len() >= MAX_ADDRESSES && !until.contains_key(&address) {
            until.retain(|_, time| *time > now);
            // More addresses than that are an attack, in which each counts as one of those that are limited.
            if until.len() >= MAX_ADDRESSES {
                return Err(INTERVAL);
            }
        }
        let time = until.entry(address).or_insert(now);
        let next = (*time).max(now) + INTERVAL;
        let full = now + INTERVAL * MAX_BURST;
        if next > full {
            return Err(next - full);
        }
        *time = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_with_many_rejected_keys_is_limited_and_others_are_not() {
        let keys = RejectedKeys::default();
        let now = Instant::now();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        for _ in 0..MAX_BURST {
            keys.count(one, now).unwrap();
        }
        assert_eq!(keys.count(one, now), Err(INTERVAL));
        keys.count(other, now).unwrap();
        keys.count(one, now + INTERVAL).unwrap();
        assert!(keys.count(one, now + INTERVAL).is_err());
    }

    #[test]
    fn table_of_addresses_is_bounded() {
        let keys = RejectedKeys::default();
        let now = Instant::now();
        for number in 0..MAX_ADDRESSES as u32 + 100 {
            let _ = keys.count(IpAddr::from(number.to_be_bytes()), now);
        }
        assert_eq!(keys.until.lock().unwrap().len(), MAX_ADDRESSES);
        // Addresses are forgotten when they have been quiet.
        keys.count(IpAddr::from([255, 0, 0, 1]), now + INTERVAL * 2)
            .unwrap();
        assert_eq!(keys.until.lock().unwrap().len(), 1);
    }

    #[test]
    fn network_of_an_ipv6_client_counts_as_one_address() {
        let keys = RejectedKeys::default();
        let now = Instant::now();
        let address = |host: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, host]);
        for host in 0..MAX_BURST as u16 {
            keys.count(address(host), now).unwrap();
        }
        assert!(keys.count(address(9999), now).is_err());
    }
}
