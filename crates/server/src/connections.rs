//! The open connections: how many there are, of which addresses, and which of them are idle.
//!
//! A new connection takes the place of an idle one if there is no room: first of one that has had its last response, then of one that
//! has never had a request, the oldest first, then of one between two requests. Only if every connection has a request in progress, there is no room.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// See the module.
pub(crate) struct Connections {
    limit: usize,
    /// The most of one address. Addresses of this machine have no such limit, since a proxy may have one of them.
    per_address: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    open: BTreeMap<u64, Entry>,
    /// Connections that have had their last response.
    ending: BTreeSet<u64>,
    /// Idle connections that have never had a request.
    unused: BTreeSet<u64>,
    /// Idle connections between two requests.
    between: BTreeSet<u64>,
    addresses: HashMap<IpAddr, BTreeSet<u64>>,
}

struct Entry {
    address: IpAddr,
    requests: usize,
    closed: Arc<Notify>,
}

/// Why there is no room for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// All connections have requests in progress.
    Total(usize),
    /// Those of this address do.
    Address(usize),
}

impl Connections {
    /// A table for `limit` connections, `per_address` of each address.
    pub fn new(limit: usize, per_address: usize) -> Arc<Connections> {
        Arc::new(Connections {
            limit,
            per_address,
            state: Mutex::default(),
        })
    }

    /// Makes room for a connection, and closes an idle one if it must.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn open(self: &Arc<Self>, address: IpAddr) -> Result<OpenConnection, NoRoom> {
        let address = network(address);
        let mut state = self.lock();
        let of_address = state.addresses.get(&address);
        if !address.is_loopback() && of_address.is_some_and(|ids| ids.len() >= self.per_address) {
            let idle = of_address.into_iter().flatten();
            let idle = idle.copied().filter(|id| state.open[id].requests == 0);
            let idle = idle.min_by_key(|id| !state.ending.contains(id));
            state.close(idle.ok_or(NoRoom::Address(self.per_address))?);
        }
        if state.open.len() >= self.limit {
            let idle = [&state.ending, &state.unused, &state.between];
            let idle = idle.iter().find_map(|ids| ids.first()).copied();
            state.close(idle.ok_or(NoRoom::Total(self.limit))?);
        }
        let id = state.next_id;
        state.next_id += 1;
        let closed = Arc::new(Notify::new());
        let entry = Entry {
            address,
            requests: 0,
            closed: Arc::clone(&closed),
        };
        state.open.insert(id, entry);
        state.unused.insert(id);
        state.addresses.entry(address).or_default().insert(id);
        Ok(OpenConnection(Arc::new(Handle {
            table: Arc::clone(self),
            id,
            closed,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a connection out of the table and lets its task end.
    fn close(&mut self, id: u64) {
        if let Some(entry) = self.remove(id) {
            entry.closed.notify_one();
        }
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.open.remove(&id)?;
        self.ending.remove(&id);
        self.unused.remove(&id);
        self.between.remove(&id);
        if let Some(ids) = self.addresses.get_mut(&entry.address) {
            ids.remove(&id);
            if ids.is_empty() {
                self.addresses.remove(&entry.address);
            }
        }
        Some(entry)
    }
}

/// The address that limits count: an IPv4 address, or the /64 network of an IPv6 address, since a client has all of it.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        other => other,
    }
}

/// An open connection, until its last clone is dropped.
#[derive(Clone)]
pub(crate) struct OpenConnection(Arc<Handle>);

struct Handle {
    table: Arc<Connections>,
    id: u64,
    closed: Arc<Notify>,
}

impl OpenConnection {
    /// Counts a request as in progress until the guard is dropped.
    pub fn begin_request(&self) -> RequestGuard {
        let mut state = self.0.table.lock();
        if let Some(entry) = state.open.get_mut(&self.0.id) {
            entry.requests += 1;
            state.unused.remove(&self.0.id);
            state.between.remove(&self.0.id);
        }
        RequestGuard(Arc::clone(&self.0))
    }

    /// Marks a connection that has no request in progress and gets no more responses.
    pub fn end(&self) {
        let id = self.0.id;
        let mut state = self.0.table.lock();
        if state.open.get(&id).is_some_and(|entry| entry.requests == 0) {
            state.unused.remove(&id);
            state.between.remove(&id);
            state.ending.insert(id);
        }
    }

    /// Resolves when the connection must make room for another one.
    pub async fn closed(&self) {
        self.0.closed.notified().await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.table.lock().remove(self.id);
    }
}

/// A request in progress on a connection, until it is dropped.
pub(crate) struct RequestGuard(Arc<Handle>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut state = self.0.table.lock();
        if let Some(entry) = state.open.get_mut(&self.0.id) {
            entry.requests -= 1;
            if entry.requests == 0 {
                state.between.insert(self.0.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    async fn is_closed(connection: &OpenConnection) -> bool {
        let closed = connection.closed();
        tokio::time::timeout(std::time::Duration::ZERO, closed)
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn new_connection_replaces_the_oldest_idle_one() {
        let table = Connections::new(3, 3);
        let busy = table.open(address(1)).unwrap();
        let request = busy.begin_request();
        let used = table.open(address(1)).unwrap();
        drop(used.begin_request());
        let unused = table.open(address(1)).unwrap();
        let new = table.open(address(2)).unwrap();
        // One that has had a request stays longer than one that has had none.
        assert!(is_closed(&unused).await && !is_closed(&used).await);
        let _request = new.begin_request();
        let newer = table.open(address(2)).unwrap();
        assert!(is_closed(&used).await && !is_closed(&busy).await);
        let _newer = newer.begin_request();
        let refused = table.open(address(3)).err();
        assert_eq!(refused, Some(NoRoom::Total(3)));
        drop(request);
        table.open(address(3)).unwrap();
        assert!(is_closed(&busy).await);
        drop((busy, used, unused, new, newer));
    }

    #[tokio::test]
    async fn connection_after_its_last_response_is_replaced_before_a_new_one() {
        // By the limit of all connections, and by that of one address.
        for (limit, per_address, other) in [(2, 2, address(2)), (10, 2, address(1))] {
            let table = Connections::new(limit, per_address);
            let new = table.open(address(1)).unwrap();
            let ending = table.open(address(1)).unwrap();
            drop(ending.begin_request());
            ending.end();
            let next = table.open(other).unwrap();
            assert!(is_closed(&ending).await && !is_closed(&new).await);
            // One with a request in progress stays.
            let request = next.begin_request();
            next.end();
            let last = table.open(other).unwrap();
            assert!(is_closed(&new).await && !is_closed(&next).await);
            drop((request, next, last, new, ending));
        }
    }

    #[tokio::test]
    async fn one_address_has_its_own_limit() {
        let table = Connections::new(10, 2);
        let first = table.open(address(1)).unwrap();
        let second = table.open(address(1)).unwrap();
        let requests = (first.begin_request(), second.begin_request());
        assert_eq!(table.open(address(1)).err(), Some(NoRoom::Address(2)));
        table.open(address(2)).unwrap();
        drop(requests);
        let third = table.open(address(1)).unwrap();
        assert!(is_closed(&first).await && !is_closed(&second).await);
        drop((first, second, third));
        assert!(table.lock().addresses.is_empty() && table.lock().open.is_empty());
        // A proxy on this machine has as many as there are.
        let local = [0; 5].map(|_| table.open(IpAddr::from([127, 0, 0, 1])).unwrap());
        assert!(!is_closed(&local[0]).await);
    }

    #[test]
    fn network_of_an_ipv6_client_is_one_address() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(of("::1"), "::1");
    }
}
