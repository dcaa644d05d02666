//! `sinter cluster`, as it is typed.

use crate::http::get;
use crate::world::World;
use crate::world::both;
use crate::world::until;

#[test]
fn three_commands_form_a_cluster_and_the_others_show_it() {
    let mut world = World::alone();
    let off = world.cluster("a", &["status"]);
    assert_eq!(off.status.code(), Some(2), "{}", both(&off));
    assert!(both(&off).contains("hint: `sinter cluster init`"), "{}", both(&off));
    let made = world.cluster("a", &["init"]);
    assert_eq!(made.status.code(), Some(0), "{}", both(&made));
    let text = String::from_utf8(made.stdout).unwrap();
    let tokens: Vec<&str> = text.split_whitespace().skip_while(|word| *word != "--join").collect();
    let data = tokens[1];
    assert!(text.contains("sinter serve --witness --cluster ADDR:PORT --join "), "{text}");
    assert_eq!(world.cluster("a", &["init"]).status.code(), Some(11));
    world.b = Some(world.start("b", &["--join", data]));
    world.until_in_sync("a");

    let status = world.cluster("b", &["status"]);
    assert_eq!(status.status.code(), Some(0), "{}", both(&status));
    let text = both(&status);
    assert!(text.contains("this node   b, secondary"), "{text}");
    assert!(text.contains("primary     a, epoch "), "{text}");
    assert_eq!(both(&world.cluster("a", &["status", "-x"])), "");
    let rows = world.cluster("a", &["peers", "-H", "-o", "name,role,state,in_sync,lag", "-p", "-s", "name"]);
    assert_eq!(both(&rows), "a\tprimary\thealthy\tyes\t0\nb\tsecondary\thealthy\tyes\t0\n");
    let json = world.cluster("a", &["peers", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["nodes"][1]["node_id"], "b");
    let whole = both(&world.node("b").run(&["status"]));
    assert!(whole.contains("cluster     healthy, 2 of 2 nodes healthy, a is the primary"), "{whole}");

    let token = |arguments: &[&str]| world.cluster("b", arguments);
    assert_ne!(token(&["token", "--client"]).stdout, token(&["token", "--role", "data"]).stdout);
    assert_eq!(token(&["token", "--role", "king"]).status.code(), Some(2));
    let more = String::from_utf8(world.cluster("b", &["token"]).stdout).unwrap();
    let joined = world.cluster("a", &["join", more.trim()]);
    assert_eq!(joined.status.code(), Some(11), "{}", both(&joined));
    assert_eq!(world.cluster("a", &["join", "TOKEN"]).status.code(), Some(2));
    assert_eq!(world.cluster("a", &["forget", "--yes"]).status.code(), Some(11), "others count on it");

    assert_eq!(world.cluster("a", &["add", "c", "http://c:8000"]).status.code(), Some(0));
    assert_eq!(world.cluster("a", &["add", "c", "http://c:8000"]).status.code(), Some(11));
    until("it is listed", || both(&world.cluster("b", &["peers"])).contains("joining"));
    assert_eq!(world.cluster("a", &["remove", "c"]).status.code(), Some(2), "nobody can be asked");
    assert_eq!(world.cluster("a", &["remove", "c", "--yes"]).status.code(), Some(0));
    assert_eq!(world.cluster("a", &["remove", "c", "--yes"]).status.code(), Some(10));
    assert_eq!(world.cluster("a", &["remove", "a", "--yes"]).status.code(), Some(11));

    let moved = world.cluster("b", &["failover"]);
    assert_eq!(moved.status.code(), Some(0), "{}", both(&moved));
    assert!(both(&moved).contains("b is the primary in place of a, after "), "{}", both(&moved));
    let status = both(&world.cluster("a", &["status"]));
    assert!(status.contains("failed over from a") && status.contains("a to b, handed over"), "{status}");
    world.until_in_sync("b");
    let moved = world.cluster("a", &["failback", "--json"]);
    let moved: serde_json::Value = serde_json::from_slice(&moved.stdout).unwrap();
    assert_eq!(moved["new_primary"], "a");
    assert_eq!(world.cluster("a", &["failback"]).status.code(), Some(2));
    assert_eq!(world.cluster("a", &["promote"]).status.code(), Some(2), "--force is needed");
    assert_eq!(world.cluster("a", &["failover", "nobody"]).status.code(), Some(10));
    assert_eq!(get(world.url("a"), "/health").json()["cluster_enabled"], true);
}
