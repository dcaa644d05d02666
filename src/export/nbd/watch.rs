//! Notices requests that arrive while a connection's own thread is busy with something slow.
//!
//! At depth 1 that thread executes even a FLUSH itself, because handing it over would cost more
//! than it takes. Should the client send more meanwhile after all, the watch sends a worker as a
//! deputy to receive in its place. Nobody is woken as long as nothing arrives.

use std::collections::HashMap;
use std::io;
use std::iter;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::thread::{Builder, JoinHandle};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use super::connection::Connection;
use super::execute::Work;
use super::workers::WorkQueue;
use crate::sync::Mutex;

/// Stands for the bell that ends the watch; connections are numbered from 1 on.
const BELL: u64 = 0;
const EVENTS_AT_ONCE: usize = 64;

/// Sockets that may be watched.
pub(super) struct Watch {
    epoll: OwnedFd,
    bell: OwnedFd,
    connections: Mutex<HashMap<u64, Weak<Connection>>>,
}

impl Watch {
    pub(super) fn new() -> io::Result<Watch> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN)?;
        Ok(Watch { epoll, bell, connections: Mutex::default() })
    }

    /// Makes the connection known, without watching it yet.
    pub(super) fn enter(&self, connection: &Arc<Connection>) -> io::Result<()> {
        self.connections.lock().insert(connection.id, Arc::downgrade(connection));
        let data = EventData::new_u64(connection.id);
        Ok(epoll::add(&self.epoll, &connection.socket, data, EventFlags::ONESHOT)?)
    }

    /// Forgets the connection.
    pub(super) fn leave(&self, connection: &Connection) {
        self.connections.lock().remove(&connection.id);
        // Closing the socket removes it anyway.
        let _ = epoll::delete(&self.epoll, &connection.socket);
    }

    /// From now on, the first bytes that arrive send a deputy.
    pub(super) fn arm(&self, connection: &Connection) {
        self.modify(connection, EventFlags::IN | EventFlags::ONESHOT);
    }

    /// No deputy any more.
    pub(super) fn disarm(&self, connection: &Connection) {
        self.modify(connection, EventFlags::ONESHOT);
    }

    fn modify(&self, connection: &Connection, flags: EventFlags) {
        // It cannot fail for a socket that was entered; if it did, requests would only wait longer.
        let _ = epoll::modify(&self.epoll, &connection.socket, EventData::new_u64(connection.id), flags);
    }

    /// Ends the watch's thread.
    pub(super) fn close(&self) {
        // The counter of the bell cannot overflow by one ring.
        let _ = rustix::io::write(&self.bell, &[1; 8]);
    }

    fn run(&self, queue: &WorkQueue) {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            // An interrupted wait brings no events and is simply repeated.
            let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), None);
            for event in events.drain(..) {
                let id = event.data.u64();
                if id == BELL {
                    return;
                }
                let connection = self.connections.lock().get(&id).and_then(Weak::upgrade);
                if let Some(connection) = connection {
                    queue.submit(&connection, iter::once(Work::Deputy));
                }
            }
        }
    }
}

/// Starts the thread that sends deputies.
pub(super) fn start(watch: &Arc<Watch>, queue: &Arc<WorkQueue>) -> io::Result<JoinHandle<()>> {
    let (watch, queue) = (Arc::clone(watch), Arc::clone(queue));
    Builder::new().name("nbd-watch".to_owned()).spawn(move || watch.run(&queue))
}
