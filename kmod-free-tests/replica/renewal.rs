//! Certificates are renewed long before they end, on nodes with the authority's key and on those without.

use std::path::Path;
use std::time::Duration;

use sinter::replica::identity::IdentityFiles;
use sinter::replica::identity::Stored;

use crate::world::World;
use crate::world::members;
use crate::world::until;

fn stored(node: &Path) -> Stored {
    IdentityFiles::in_directory(node.join("cluster")).load().unwrap().unwrap()
}

/// Gives a node that is not running the certificate that it would have had for so long.
fn age(world: &World, name: &str, age: Duration) {
    let authority = stored(&world.path("a")).authority.unwrap();
    let identity = stored(&world.path(name)).identity;
    let signed = sinter::daemon::environment().clock.since_unix_epoch() - age;
    let certificate =
        authority.sign(identity.peer().name, &identity.signing_request().unwrap(), signed).unwrap();
    let older = identity.renewed(certificate).unwrap();
    IdentityFiles::in_directory(world.path(name).join("cluster")).save_renewed(&older).unwrap();
}

#[test]
fn a_certificate_is_renewed_after_half_of_its_life_and_not_before() {
    let mut world = World::formed();
    let day = Duration::from_secs(24 * 3600);
    let fresh = stored(&world.path("a")).identity.peer().valid_until;
    assert!(world.take("b").terminate().success());
    world.end_witness();
    age(&world, "b", day * 200);
    age(&world, "w", day * 200);
    let now = || sinter::daemon::environment().clock.since_unix_epoch();
    let due = |world: &World, name: &str| stored(&world.path(name)).identity.renewal_due(now());
    assert!(due(&world, "b") && due(&world, "w") && !due(&world, "a"));
    world.restart("b");
    world.restart_witness();
    // The one signs it itself, the other one asks.
    until("both are renewed", || !due(&world, "b") && !due(&world, "w"));
    world.until_in_sync("a");
    until("the witness is heard", || members(world.url("b"))["has_quorum"] == true);
    assert_eq!(stored(&world.path("a")).identity.peer().valid_until, fresh, "it was not due");

    // One that is younger is left alone.
    assert!(world.take("b").terminate().success());
    age(&world, "b", day * 100);
    let younger = stored(&world.path("b")).identity.peer().valid_until;
    world.restart("b");
    world.until_in_sync("a");
    assert_eq!(stored(&world.path("b")).identity.peer().valid_until, younger);
}
