//! Tokens that do not let anybody in. That an expired one is refused, the tests of links show: they have a clock.

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
