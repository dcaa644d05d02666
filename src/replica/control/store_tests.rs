use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use openraft::testing::{StoreBuilder, Suite};

use super::*;

static FILES: AtomicU32 = AtomicU32::new(0);

/// A path of its own, removed when it is dropped.
struct Fresh(PathBuf);

impl Fresh {
    fn new() -> Fresh {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let name = format!("sinter-group-{}-{number}.redb", std::process::id());
        Fresh(std::env::temp_dir().join(name))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn identity() -> Identity {
    Identity { cluster: Uuid([1; 16]), own: NodeId(1), group: Some(Uuid([2; 16])) }
}

struct Builder;

impl StoreBuilder<Types, Store, Store, Fresh> for Builder {
    async fn build(&self) -> Result<(Fresh, Store, Store), Failed> {
        let fresh = Fresh::new();
        let store = Store::create(&fresh.0, identity()).unwrap().0;
        Ok((fresh, store.clone(), store))
    }
}

#[test]
fn the_storage_is_what_openraft_asks_for() {
    Suite::test_all(Builder).unwrap();
}

#[test]
fn a_file_belongs_to_one_node_of_one_cluster() {
    let fresh = Fresh::new();
    drop(Store::create(&fresh.0, identity()).unwrap());
    // It was made and never used: an attempt that failed is made again.
    let store = Store::create(&fresh.0, Identity { group: None, ..identity() }).unwrap();
    assert_eq!(store.1, identity());
    assert_eq!(Store::open(&fresh.0).err().unwrap().kind(), ErrorKind::Busy);
    drop(store);
    let other = Identity { own: NodeId(2), ..identity() };
    assert_eq!(Store::create(&fresh.0, other).err().unwrap().kind(), ErrorKind::Exists);
    assert_eq!(Store::open(&fresh.0).unwrap().1, identity());
    assert!(Store::open(&Fresh::new().0).is_err());
}

#[test]
fn garbage_is_no_file_of_a_group() {
    for bytes in [&[0u8; 8192][..], b"redb", &[]] {
        let fresh = Fresh::new();
        std::fs::write(&fresh.0, bytes).unwrap();
        assert!(Store::open(&fresh.0).is_err(), "{} bytes", bytes.len());
    }
}
