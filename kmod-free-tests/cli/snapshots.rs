//! Snapshots from the command line, and the commands that show and wait.

use serde_json::Value;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::failure;
use crate::noise;
use crate::text;

fn json(daemon: &Daemon, arguments: &[&str]) -> Value {
    serde_json::from_str(&text(&daemon.run(arguments))).unwrap()
}

fn import(daemon: &Daemon, scratch: &Scratch, volume: &str, image: &[u8]) {
    let file = scratch.join("image");
    std::fs::write(&file, image).unwrap();
    text(&daemon.run(&["import", "--yes", file.to_str().unwrap(), volume]));
}

#[test]
fn a_snapshot_lives() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "v:4MiB"]);
    let empty = daemon.run(&["snapshot", "list"]);
    assert!(String::from_utf8_lossy(&empty.stderr).contains("sinter snapshot create"));
    let (first, second) = (noise(4 << 20, 1), noise(4 << 20, 2));
    import(&daemon, &scratch, "v", &first);
    let shown = text(&daemon.run(&["snapshot", "create", "v@one", "--description", "d", "--tag", "k=w"]));
    assert!(shown.contains("v@one") && shown.contains("4.00 MiB"), "{shown}");
    import(&daemon, &scratch, "v", &second);

    let table = text(&daemon.run(&["snapshot", "list"]));
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NAME", "SIZE", "USED", "CREATED", "STATE"]);
    let rows = text(&daemon.run(&["snapshot", "list", "v", "-H", "-p", "-o", "name,used,tags"]));
    assert_eq!(rows, "v@one\t4194304\tk=w\n");
    assert_eq!(json(&daemon, &["snapshot", "list", "--json"])["total"], 1);
    assert_eq!(json(&daemon, &["snapshot", "show", "v@one", "--json"])["volume_name"], "v");

    assert!(daemon.run(&["export", "v@one", "-"]).stdout == first);
    assert!(daemon.run(&["export", "v", "-"]).stdout == second);
    let reclaimable = json(&daemon, &["snapshot", "show", "v@one", "--json"])["reclaimable_bytes"].as_u64();
    assert!(reclaimable.unwrap() >= 4 << 20, "all of it has been overwritten: {reclaimable:?}");
    text(&daemon.run(&["snapshot", "clone", "v@one", "copy"]));
    assert!(daemon.run(&["export", "copy", "-"]).stdout == first);
    text(&daemon.run(&["volume", "clone", "v", "twin"]));
    assert!(daemon.run(&["export", "twin", "-"]).stdout == second);

    let error = failure(&daemon.run(&["snapshot", "restore", "v@one", "--onto", "v"]), 2);
    assert!(error.contains("--yes"), "{error}");
    text(&daemon.run(&["snapshot", "restore", "v@one", "--onto", "v", "--yes"]));
    assert!(daemon.run(&["export", "v", "-"]).stdout == first);
    assert!(text(&daemon.run(&["snapshot", "restore", "v@one"])).contains("v-restored"));
    assert_eq!(
        json(&daemon, &["snapshot", "restore", "v@one", "--name", "named", "--json"])["name"],
        "named"
    );

    text(&daemon.run(&["volume", "delete", "v", "--yes"]));
    assert_eq!(text(&daemon.run(&["snapshot", "list", "-H", "-o", "name,deleted"])), "v@one\tyes\n");
    assert!(daemon.run(&["export", "v@one", "-"]).stdout == first);
    failure(&daemon.run(&["snapshot", "delete", "v@one"]), 2);
    assert!(text(&daemon.run(&["snapshot", "delete", "v@one", "-y"])).is_empty());
    let error = failure(&daemon.run(&["snapshot", "show", "v@one"]), 10);
    assert!(error.contains("hint: "), "{error}");
    text(&daemon.run(&["wait", "--for", "delete,gc"]));
    assert_eq!(json(&daemon, &["status", "--json"])["snapshots"]["pending_releases"], 0);
}

#[test]
fn several_volumes_at_one_moment() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "a:1MiB", "--volume", "b:1MiB"]);
    let made = json(&daemon, &["snapshot", "create", "a@g", "b@g", "--json"]);
    assert_eq!(made["snapshots"][0]["created_at"], made["snapshots"][1]["created_at"]);
    text(&daemon.run(&["snapshot", "create", "a", "b"]));
    assert_eq!(json(&daemon, &["snapshot", "list", "--json"])["total"], 4);
    let error = failure(&daemon.run(&["snapshot", "create", "a@x", "b@y"]), 2);
    assert!(error.contains("one name"), "{error}");
    failure(&daemon.run(&["snapshot", "create", "a@g"]), 11);
    failure(&daemon.run(&["snapshot", "create", "a@z", "none@z"]), 10);
    failure(&daemon.run(&["snapshot", "create", "a@"]), 2);
    for arguments in [
        &["snapshot", "show", "a"][..],
        &["snapshot", "show", "@g"],
        &["snapshot", "create"],
        &["snapshot", "restore", "a@g", "--onto", "b", "--name", "c"],
        &["wait"],
        &["wait", "--for", "christmas"],
    ] {
        assert_eq!(daemon.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(json(&daemon, &["snapshot", "list", "--json"])["total"], 4);
}

#[test]
fn a_difference_is_listed() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "v:4MiB"]);
    text(&daemon.run(&["snapshot", "create", "v@one"]));
    let mut image = vec![0; 1 << 20];
    image[8192..12_288].copy_from_slice(&noise(4096, 3));
    import(&daemon, &scratch, "v", &image);
    text(&daemon.run(&["snapshot", "create", "v@two"]));
    let expected = "8192\t4096\tdata\n";
    assert_eq!(text(&daemon.run(&["snapshot", "diff", "v@one", "-H", "-p"])), expected);
    assert_eq!(text(&daemon.run(&["snapshot", "diff", "v@one", "v@two", "-H", "-p"])), expected);
    assert_eq!(text(&daemon.run(&["snapshot", "diff", "v@two", "-H", "-p"])), "");
    let found = json(&daemon, &["snapshot", "diff", "v@one", "v@two", "--json"]);
    assert_eq!(found["ranges"][0]["offset"], 8192);
    failure(&daemon.run(&["snapshot", "diff", "v@one", "none"]), 10);
    failure(&daemon.run(&["snapshot", "diff", "v@one", "v@one"]), 2);
}

#[test]
fn the_flash_is_shown() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &[]);
    let shown = text(&daemon.run(&["flash"]));
    assert!(shown.contains("health      9") || shown.contains("health      100"), "{shown}");
    assert!(json(&daemon, &["flash", "--json"])["capacity"]["total_bytes"].as_u64().unwrap() > 15 << 30);
    assert!(text(&daemon.run(&["status"])).contains("snapshots   0"));
}

#[test]
fn who_mistakes_a_snapshot_for_a_volume_is_told_the_right_verb() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:1MiB"]);
    text(&daemon.run(&["snapshot", "create", "demo@monday"]));
    for (arguments, status, says) in [
        (&["snapshot", "show", "demo@nosuch"][..], 10, "Snapshot demo@nosuch not found"),
        (&["snapshot", "show", "demo@nosuch"], 10, "`sinter snapshot list demo`"),
        (&["snapshot", "show", "nosuch@monday"], 10, "hint: `sinter volume list`"),
        (&["snapshot", "list", "nosuch"], 10, "hint: `sinter volume list`"),
        (&["snapshot", "restore", "demo@monday", "--onto", "nosuch"], 10, "hint: `sinter volume list`"),
        (&["snapshot", "create", "demo@monday"], 11, "`sinter snapshot list VOLUME`"),
        (&["snapshot", "clone", "demo@monday", "demo"], 11, "`sinter volume show demo`"),
        (&["volume", "show", "demo@monday"], 10, "`sinter snapshot show demo@monday`"),
        (&["volume", "delete", "demo@monday"], 10, "`sinter snapshot delete demo@monday`"),
        (&["volume", "clone", "demo@monday", "copy"], 10, "`sinter snapshot clone demo@monday NAME`"),
        (&["volume", "resize", "demo@monday", "1GiB"], 10, "a snapshot cannot be changed"),
        (&["import", "/dev/null", "demo@monday"], 10, "a snapshot cannot be written to"),
    ] {
        let error = failure(&daemon.run(arguments), status);
        assert!(error.contains(says), "{arguments:?}: {error}");
    }
}

#[test]
fn a_volume_that_grows_by_a_restore_is_said_to() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "large:4MiB", "--volume", "small:1MiB"]);
    text(&daemon.run(&["snapshot", "create", "large@s"]));
    let error = failure(&daemon.run(&["snapshot", "restore", "large@s", "--onto", "small"]), 2);
    assert!(error.contains("Volume small grows from 1.00 MiB to 4.00 MiB"), "{error}");
    let size = |name| json(&daemon, &["volume", "show", name, "--json"])["size_bytes"].as_u64().unwrap();
    assert_eq!(size("small"), 1 << 20);
    let restored = daemon.run(&["snapshot", "restore", "large@s", "--onto", "small", "--yes"]);
    let said = String::from_utf8_lossy(&restored.stderr).into_owned();
    assert!(restored.status.success() && said.contains("Volume small grows"), "{said}");
    assert_eq!(size("small"), 4 << 20);
    let same = daemon.run(&["snapshot", "restore", "large@s", "--onto", "small", "--yes"]);
    assert!(same.status.success() && same.stderr.is_empty(), "{same:?}");
}

#[test]
fn space_is_back_once_a_delete_has_been_waited_for() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "v:64MiB", "--volume", "stays:1MiB"]);
    let used =
        |daemon: &Daemon| json(daemon, &["status", "--json"])["capacity"]["used_bytes"].as_u64().unwrap();
    import(&daemon, &scratch, "v", &noise(48 << 20, 4));
    let before = used(&daemon);
    assert!(before >= 48 << 20, "{before}");
    text(&daemon.run(&["volume", "delete", "v", "--yes"]));
    text(&daemon.run(&["wait", "--for", "delete"]));
    let after = used(&daemon);
    // One segment may hold the end of the volume beside what came after it.
    assert!(after + (40 << 20) <= before, "{before} bytes were in use, and {after} are");
    assert_eq!(json(&daemon, &["status", "--json"])["snapshots"]["awaits_checkpoint"], false);
}
