//! Tokens that do not let anybody in.

use std::process::Stdio;
use std::time::Duration;

use sinter::replica::identity::IdentityFiles;
use sinter::replica::identity::PeerRole;

use crate::daemon::Daemon;
use crate::daemon::Scratch;

use crate::http::send;
use crate::world::World;
use crate::world::both;
use crate::world::members;

#[test]
fn a_token_is_good_for_one_node_of_its_kind() {
    let world = World::formed();
    let url = world.url("a");
    let token = |role: &str| {
        let body = format!("{{\"role\": \"{role}\"}}");
        let answer = send(url, "POST", "/api/v1/cluster/tokens", &body);
        assert_eq!(answer.status, 201);
        answer.json()["token"].as_str().unwrap().to_owned()
    };
    let good = token("data");
    let witness = token("witness");
    for (name, bad, why) in
        [("c", "garbage", "token"), ("d", witness.as_str(), "this token is for a witness")]
    {
        let output = world.refused(name, &["--join", bad]);
        assert_eq!(output.status.code(), Some(2), "{}", both(&output));
        assert!(both(&output).contains(why), "{}", both(&output));
    }
    let mut broken = good.clone().into_bytes();
    let middle = broken.len() / 2;
    broken[middle] = if broken[middle] == b'a' { b'b' } else { b'a' };
    let output = world.refused("e", &["--join", &String::from_utf8(broken).unwrap()]);
    assert_ne!(output.status.code(), Some(0), "{}", both(&output));
    let before = members(url)["nodes"].as_array().unwrap().len();
    let third = world.start("f", &["--join", &good]);
    crate::world::until("it is a node", || members(url)["nodes"].as_array().unwrap().len() == before + 1);
    let output = world.refused("g", &["--join", &good]);
    assert_eq!(output.status.code(), Some(2), "{}", both(&output));
    assert!(both(&output).contains("used"), "{}", both(&output));
    assert_eq!(members(url)["nodes"].as_array().unwrap().len(), before + 1);
    drop(third);
    // A pool that holds something is not given up by accident.
    let output = world.refused("f2", &["--join", "@/nowhere"]);
    assert_eq!(output.status.code(), Some(2), "{}", both(&output));
    send(url, "POST", "/api/v1/cluster/tokens", r#"{"role": "king"}"#).problem(400, "invalid");
    send(url, "POST", "/api/v1/cluster/init", "{}").problem(409, "exists");
}

#[test]
fn expired_and_used_tokens_are_refused_and_logged() {
    let (mut world, scratch) = (World::alone(), Scratch::new());
    let log = scratch.join("log");
    assert!(world.take("a").terminate().success());
    let directory = world.path("a");
    let device = format!("{},size=256MiB", directory.join("pool").display());
    let file = std::fs::File::create(&log).unwrap();
    let a = Daemon::start_logging(&directory, &["--device", &device], Stdio::from(file));
    let made = send(&a.url, "POST", "/api/v1/cluster/init", "{}");
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    let made = made.json();

    let stored = IdentityFiles::in_directory(directory.join("cluster")).load().unwrap().unwrap();
    let address = made["listen"].as_str().unwrap().to_owned();
    let environment = sinter::daemon::environment();
    let before = environment.clock.since_unix_epoch() - Duration::from_secs(2 * 3600);
    let expired =
        stored.authority.unwrap().token(PeerRole::Data, &[address], before, &*environment.random).unwrap();
    let output = world.refused("c", &["--join", &expired.to_string()]);
    assert_eq!(output.status.code(), Some(2), "{}", both(&output));
    assert!(both(&output).contains("the token has expired"), "{}", both(&output));

    let good = made["data_token"].as_str().unwrap();
    let second = world.start("d", &["--join", good]);
    let output = world.refused("e", &["--join", good]);
    assert_eq!(output.status.code(), Some(2), "{}", both(&output));
    assert!(both(&output).contains("used"), "{}", both(&output));
    drop(second);
    let told = std::fs::read_to_string(&log).unwrap();
    for why in ["lets nobody in: the token has expired", "lets nobody in: the token has been used"] {
        assert!(told.contains(why), "{why}: {told}");
    }
}
