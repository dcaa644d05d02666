//! The house rules as tests. A rule that no test enforces is a wish; each failure here names the
//! file and the line, and says what to do instead.
//!
//! The rules read text, not types: they see what a plain look at the source can see. `Source`
//! blanks comments, strings and test modules first, so that prose and tests may name anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const SOURCE_LINES_MAX: usize = 600;
const TEST_LINES_MAX: usize = 1000;

/// Modules that are pure: no task, no thread, no clock, no chance.
const ENGINE: &[&str] = &["array", "store", "format", "device", "error", "units", "sync"];

/// One Rust file, cut up for the rules. Both texts have the file's own line numbers.
struct Source {
    /// Path from the repository's root, with `/`.
    path: String,
    text: String,
    /// Without comments and the insides of literals.
    code: String,
    /// `code` without modules and files that are compiled for tests only.
    shipped: String,
    comments: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let (code, comments) = separate_comments(text);
        // A file of tests is declared under `#[cfg(test)]` by the file that it tests.
        let is_tests = path.ends_with("/tests.rs") || path.ends_with("_tests.rs");
        let shipped = if is_tests { String::new() } else { without_test_modules(&code) };
        Source { path: path.to_owned(), text: text.to_owned(), code, shipped, comments }
    }

    /// The top-level module that the file belongs to; `None` for `lib.rs` and `main.rs`.
    fn module(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        let first = rest.split('/').next()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (name != "lib" && name != "main").then_some(name)
    }

    /// How many `super::` lead from this file to the root of the crate.
    fn depth(&self) -> usize {
        let rest = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let parts = rest.split('/').count();
        if rest.ends_with("/mod.rs") { parts - 1 } else { parts }
    }
}

/// Splits a text into code and comments, each with everything else replaced by spaces (line ends
/// stay). Inside of string and character literals is blanked in both.
fn separate_comments(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let blank = || bytes.iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }).collect::<Vec<u8>>();
    let (mut code, mut comments) = (blank(), blank());
    let mut at = 0;
    while at < bytes.len() {
        let end = token_end(bytes, at);
        let target = if bytes[at..].starts_with(b"//") || bytes[at..].starts_with(b"/*") {
            &mut comments[at..end]
        } else if end - at > 1 && bytes[at] != b'b' && !bytes[at].is_ascii_alphanumeric() && bytes[at] != b'_'
        {
            // A literal: only its quotes stay.
            code[at] = bytes[at];
            code[end - 1] = bytes[at];
            at = end;
            continue;
        } else {
            &mut code[at..end]
        };
        target.copy_from_slice(&bytes[at..end]);
        at = end;
    }
    let text = |bytes| String::from_utf8(bytes).expect("cut at ASCII characters only");
    (text(code), text(comments))
}

/// Where the comment, literal, word or single byte that begins at `at` ends.
fn token_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let length = match rest {
        [b'/', b'/', ..] => rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_length(rest),
        [b'"', ..] => quoted_length(rest, b'"'),
        // A character literal, not a lifetime: 'x' or '\...'.
        [b'\'', b'\\', ..] => quoted_length(rest, b'\''),
        [b'\'', _, b'\'', ..] => 3,
        [b'\'', first, ..] if !first.is_ascii() => quoted_length(rest, b'\''),
        [first, ..] if first.is_ascii_alphabetic() || *first == b'_' => {
            let word = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
            raw_string_length(rest, word).unwrap_or(word)
        }
        _ => 1,
    };
    at + length.min(rest.len())
}

fn block_comment_length(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted_length(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// The length of a raw string whose prefix (`r`, `br`) is the word of this length.
fn raw_string_length(rest: &[u8], word: usize) -> Option<usize> {
    if !matches!(&rest[..word], b"r" | b"br" | b"cr") {
        return None;
    }
    let hashes = rest[word..].iter().take_while(|b| **b == b'#').count();
    if rest.get(word + hashes) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let begin = word + hashes + 1;
    let length = rest[begin..].windows(close.len()).position(|window| window == close)?;
    Some(begin + length + close.len())
}

/// Blanks every item that follows `#[cfg(test)]`, to its closing brace or semicolon.
fn without_test_modules(code: &str) -> String {
    let mut shipped = code.to_owned();
    while let Some(begin) = shipped.find("#[cfg(test)]") {
        let mut depth = 0;
        let length = shipped[begin..].char_indices().find_map(|(at, character)| {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            (depth == 0 && matches!(character, '}' | ';')).then_some(at + 1)
        });
        let end = length.map_or(shipped.len(), |length| begin + length);
        let blank: String = shipped[begin..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        shipped.replace_range(begin..end, &blank);
    }
    shipped
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// Byte offsets of `word` in `text` where it is not part of a longer word.
fn occurrences<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let open = !word.starts_with(is_word) || !text[..*at].ends_with(is_word);
        let closed = !word.ends_with(is_word) || !text[at + word.len()..].starts_with(is_word);
        open && closed
    })
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below a folder (given from the root), as paths from the root; none if it is not there.
fn files_below(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("a folder of the repository can be listed").path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    folders.push(path);
                }
            } else {
                let inside = path.strip_prefix(root()).expect("below the root");
                found.push(inside.to_str().expect("names are ASCII").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn rust_sources(folders: &[&str]) -> Vec<Source> {
    let paths = folders.iter().flat_map(|folder| files_below(folder));
    paths
        .filter(|path| path.ends_with(".rs"))
        .map(|path| Source::new(&path, &read(&root().join(&path))))
        .collect()
}

fn all_rust() -> Vec<Source> {
    rust_sources(&["src", "kmod-free-tests", "benches", "fuzz"])
}

/// Fails with every fault at once, so that one run shows all there is to mend.
fn report(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// Module -> line of the diagram, counted from the top.
type Layers = BTreeMap<String, usize>;

/// Reads the diagram: the first `text` block in the documentation of the library.
fn layers_of(library: &str) -> Layers {
    let lines = library.lines().filter_map(|line| line.strip_prefix("//!")).map(str::trim);
    let block = lines.skip_while(|line| *line != "```text").skip(1).take_while(|line| *line != "```");
    block
        .enumerate()
        .flat_map(|(rank, line)| line.split_whitespace().map(move |m| (m.to_owned(), rank)))
        .collect()
}

/// Names of modules that `crate::` leads to, each with its line.
fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let paths = occurrences(code, "crate::").filter(|at| !code[..*at].ends_with('$'));
    paths
        .map(|at| {
            let name =
                code[at + "crate::".len()..].chars().take_while(|c| is_word(*c) || *c == '{').collect();
            (line_of(code, at), name)
        })
        .collect()
}

/// Longest chain of `super::` that begins in each line.
fn super_chains(code: &str) -> Vec<(usize, usize)> {
    let lines = code.lines().enumerate();
    lines
        .filter_map(|(line, text)| {
            let longest = (1..8).take_while(|count| text.contains(&"super::".repeat(*count))).last()?;
            Some((line + 1, longest))
        })
        .collect()
}

fn layer_faults(source: &Source, layers: &Layers) -> Vec<String> {
    let Some(own) = source.module() else { return Vec::new() };
    let path = &source.path;
    let Some(own_rank) = layers.get(own) else {
        return vec![format!(
            "{path}: `{own}` stands in no line of the diagram in src/lib.rs: give it its layer"
        )];
    };
    let mut faults = Vec::new();
    for (line, named) in crate_paths(&source.shipped) {
        let instead = match layers.get(&named) {
            _ if named == own => continue,
            Some(rank) if rank > own_rank => continue,
            Some(rank) if rank == own_rank => {
                "is on the same line of the diagram: hand what is needed in from above"
            }
            Some(_) => "is a layer above: hand it in as an argument or a trait, or move what is shared down",
            None if named.starts_with('{') => {
                "opens a group: one `use crate::module::...` a line, so that layers show"
            }
            None => {
                "is no layer: name the module that holds it (`crate::error::Error`, not a re-export of the root)"
            }
        };
        faults.push(format!("{path}:{line}: `{own}` names `crate::{named}`, which {instead}"));
    }
    for (line, count) in super_chains(&source.shipped) {
        if count >= source.depth() {
            faults.push(format!(
                "{path}:{line}: `super::` climbs to the root of the crate: write `crate::module::...`, so that layers show"
            ));
        }
    }
    faults
}

#[test]
fn modules_name_only_layers_below_their_own() {
    let layers = layers_of(&read(&root().join("src/lib.rs")));
    assert!(layers.len() >= 10, "the diagram in src/lib.rs was not found: {layers:?}");
    let faults: Vec<String> = rust_sources(&["src"]).iter().flat_map(|s| layer_faults(s, &layers)).collect();
    report(&faults);
}

#[test]
fn the_layer_rule_finds_each_way_around_it() {
    let layers =
        layers_of("//! ```text\n//! cli\n//! array\n//! store\n//! device format\n//! units\n//! ```\n");
    let count = |path: &str, text: &str| layer_faults(&Source::new(path, text), &layers).len();
    let allowed = [
        ("src/store/log.rs", "use crate::device::Device;\nuse crate::store::map::Node;\nuse super::map;\n"),
        ("src/store/mod.rs", "// crate::array in a comment\nconst A: &str = \"crate::array\";\n"),
        (
            "src/store/mod.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::array::Array;\n    use super::*;\n}\n",
        ),
        ("src/store/mod.rs", "const Q: char = '\"'; use crate::units::Lba; const R: char = '\"';"),
        ("src/store/log/tail.rs", "use super::super::map::Node;\n"),
        ("src/main.rs", "use crate::anything;"),
    ];
    for (path, text) in allowed {
        assert_eq!(count(path, text), 0, "{path}: {text}");
    }
    let refused = [
        ("src/store/log.rs", "use crate::array::Array;\n"),
        ("src/store/log.rs", "fn f() { crate::cli::main(); }\n"),
        ("src/device/mod.rs", "use crate::format::Superblock;\n"),
        ("src/store/log.rs", "use crate::{units::Lba, array::Array};\n"),
        ("src/store/log.rs", "use crate::Error;\n"),
        ("src/store/mod.rs", "use super::array::Array;\n"),
        ("src/units.rs", "use super::store;\n"),
        ("src/store/log/tail.rs", "use super::super::super::array::Array;\n"),
        ("src/unheard_of.rs", "\n"),
        ("src/store/mod.rs", "#[cfg(test)]\nmod tests;\nuse crate::array::Array;\n"),
        ("src/store/mod.rs", "const Q: char = '\"'; use crate::array::A; const R: &str = r#\"\"\"#;"),
        ("src/store/mod.rs", "fn f<'a>(x: &'a str) -> &'a str { crate::array::g(x) }"),
    ];
    for (path, text) in refused {
        assert_eq!(count(path, text), 1, "{path}: {text}");
    }
}

/// Words that must not stand in shipped code of some places, and what to write instead.
struct Ban {
    words: &'static [&'static str],
    /// Prefixes of paths below `src/`: where the ban holds, and where it does not after all.
    places: &'static [&'static str],
    except: &'static [&'static str],
    instead: &'static str,
}

/// What the simulator itself is made of: it stands below the locks that it takes hold of.
const SIMULATOR: &[&str] = &["sync", "device/faulty", "device/memory"];

const BANS: &[Ban] = &[
    Ban {
        words: &["std::time::Instant", "Instant::now", "SystemTime"],
        places: ENGINE,
        except: &[],
        instead: "the engine reads no clock: take the time from the Clock that was handed in",
    },
    Ban {
        words: &["async", ".await", "tokio"],
        places: ENGINE,
        except: &[],
        instead: "async begins above `array`: give a bounded step that somebody else calls",
    },
    Ban {
        words: &["thread::spawn", "thread::sleep", "thread::Builder", "thread::scope", "thread::park"],
        places: ENGINE,
        except: &["sync/baton"],
        instead: "the engine starts no thread and never sleeps: take helpers from above, wait on a condition",
    },
    Ban {
        words: &["getrandom", "RandomState", "std::collections::HashMap", "std::collections::HashSet"],
        places: ENGINE,
        except: &["store/blocks/neighbours"],
        instead: "one seed is one schedule: take the RandomSource that was handed in; hash with rustc_hash",
    },
    Ban {
        words: &[
            "std::sync::Mutex",
            "std::sync::RwLock",
            "std::sync::Condvar",
            "Condvar",
            "RwLock",
            "mpsc",
            "parking_lot",
        ],
        places: ENGINE,
        except: SIMULATOR,
        instead: "locks and conditions come from crate::sync, where the simulator takes hold of them",
    },
    Ban {
        words: &["std::fs", "rustix::fs", "OpenOptions", "File"],
        places: &["units", "sync", "error", "format", "store", "array", "metrics", "api", "replica"],
        // Keys and certificates are no part of a pool.
        except: &["replica/cluster/files", "replica/identity/files"],
        instead: "only `device` touches a pool's files; configuration and sockets belong to daemon, export and cli",
    },
    Ban {
        words: &["to_le_bytes", "from_le_bytes", "to_be_bytes", "from_be_bytes"],
        places: &["store", "array", "device", "api", "metrics", "daemon", "cli"],
        // A pattern is the bytes of the block itself, not a structure made of bytes; nor is garbage.
        except: &["store/reduce", "device/faulty"],
        instead: "only `format` and the wire codecs turn structures into bytes: put the codec there",
    },
    Ban {
        words: &["volume_name", "VolumeName"],
        places: &["store", "format", "device"],
        except: &[],
        instead: "the store knows objects by number; names are `array`'s opaque bytes",
    },
    Ban {
        words: &["nbd", "Nbd", "axum", "http"],
        places: ENGINE,
        except: &[],
        instead: "the engine knows no protocol: that belongs to `export` and `api`",
    },
    Ban {
        words: &["crate::replica"],
        places: &["export"],
        except: &[],
        instead: "`export` never knows of replication: it speaks to a BlockService",
    },
    Ban {
        words: &["dbg!", "todo!", "unimplemented!", "#[path"],
        places: &[""],
        except: &[],
        instead: "finish it or leave it out",
    },
];

fn is_below(path: &str, places: &[&str]) -> bool {
    let Some(path) = path.strip_prefix("src/") else { return false };
    let below = |place: &&str| {
        path.strip_prefix(*place).is_some_and(|rest| place.is_empty() || rest.starts_with(['/', '.']))
    };
    places.iter().any(below)
}

/// Spells out `use std::sync::{A, B};`, the one group that would hide a banned path.
fn ungrouped(code: &str) -> String {
    let mut spelled = String::new();
    for statement in code.split_inclusive(';') {
        let group =
            statement.find("use std::").and_then(|at| Some((at, statement.find('{')?, statement.find('}')?)));
        match group {
            Some((at, open, close)) if at < open && open < close => {
                let prefix = &statement[at + "use ".len()..open];
                spelled.push_str(&statement[..at]);
                for name in statement[open + 1..close].split(',') {
                    let lines = name.matches('\n').count();
                    let _ = write!(spelled, "use {prefix}{};{}", name.trim(), "\n".repeat(lines));
                }
                spelled.push_str(&statement[close + 1..]);
            }
            _ => spelled.push_str(statement),
        }
    }
    spelled
}

fn word_faults(source: &Source, bans: &[Ban]) -> Vec<String> {
    let mut faults = Vec::new();
    let code = ungrouped(&source.shipped);
    for ban in bans.iter().filter(|b| is_below(&source.path, b.places) && !is_below(&source.path, b.except)) {
        for word in ban.words {
            for at in occurrences(&code, word) {
                faults.push(format!("{}:{}: `{word}`: {}", source.path, line_of(&code, at), ban.instead));
            }
        }
    }
    if is_below(&source.path, ENGINE) {
        for (line, text) in source.text.lines().enumerate() {
            if text.to_ascii_lowercase().contains("prometheus") {
                let instead =
                    "the engine keeps plain counters and names no monitoring system: `metrics` does";
                faults.push(format!("{}:{}: {instead}", source.path, line + 1));
            }
        }
    }
    faults
}

#[test]
fn shipped_code_says_no_banned_word() {
    let faults: Vec<String> = rust_sources(&["src"]).iter().flat_map(|s| word_faults(s, BANS)).collect();
    report(&faults);
}

#[test]
fn the_word_rule_finds_what_it_bans_and_nothing_else() {
    let count = |path: &str, text: &str| word_faults(&Source::new(path, text), BANS).len();
    let allowed = [
        ("src/daemon/mod.rs", "use std::time::Instant; async fn f() { File::open(x).await }"),
        ("src/store/mod.rs", "// thread::spawn in prose\nthread_local! {}\nlet profile = 1;"),
        ("src/store/mod.rs", "use std::sync::{Arc, OnceLock};\nuse crate::sync::Mutex;"),
        ("src/store/mod.rs", "#[cfg(test)]\nmod tests { fn f() { std::thread::spawn(g); } }"),
        ("src/sync.rs", "use std::sync::{Condvar, Mutex};"),
        ("src/store/reduce/pattern.rs", "u32::from_le_bytes(word)"),
        ("src/storehouse.rs", "async fn f() {}"),
    ];
    for (path, text) in allowed {
        assert_eq!(count(path, text), 0, "{path}: {text}");
    }
    let refused = [
        ("src/store/gc.rs", "use std::time::Instant;"),
        ("src/array/mod.rs", "pub async fn f() {}"),
        ("src/store/mod.rs", "use std::sync::{Arc, Mutex};"),
        ("src/store/mod.rs", "use std::collections::{\n    BTreeMap,\n    HashMap,\n};"),
        ("src/store/mod.rs", "/// exported to Prometheus"),
        ("src/store/table.rs", "x.to_le_bytes()"),
        ("src/api/routes.rs", "std::fs::read(path)"),
        ("src/export/nbd/mod.rs", "use crate::replica::Role;"),
        ("src/cli/mod.rs", "dbg!(x);"),
    ];
    for (path, text) in refused {
        assert_eq!(count(path, text), 1, "{path}: {text}");
    }
    let faults = word_faults(
        &Source::new("src/store/mod.rs", "use std::collections::{\n    A,\n    HashMap,\n};"),
        BANS,
    );
    assert!(
        faults[0].starts_with("src/store/mod.rs:2:") || faults[0].starts_with("src/store/mod.rs:3:"),
        "{faults:?}"
    );
}

/// Marks of unfinished work, in comments and in everything that is not Rust.
#[test]
fn nothing_is_marked_as_unfinished() {
    let marks = ["TODO", "FIXME", "XXX"];
    let mut texts: Vec<(String, String)> = all_rust().into_iter().map(|s| (s.path, s.comments)).collect();
    for path in files_below("scripts").into_iter().chain(documents()) {
        let text = String::from_utf8_lossy(&std::fs::read(root().join(&path)).expect("listed just now"))
            .into_owned();
        texts.push((path, text));
    }
    let mut faults = Vec::new();
    for (path, text) in &texts {
        for mark in marks {
            for at in occurrences(text, mark) {
                faults.push(format!(
                    "{path}:{}: {mark}: do it now, or leave no trace of it",
                    line_of(text, at)
                ));
            }
        }
    }
    report(&faults);
}

#[test]
fn every_promise_has_tests_named_after_it() {
    let tests: Vec<Source> =
        all_rust().into_iter().filter(|s| s.path.starts_with("kmod-free-tests/")).collect();
    let without: Vec<String> = (1..=7)
        .map(|promise| format!("fn p{promise}_"))
        .filter(|name| !tests.iter().any(|source| source.text.contains(&format!("#[test]\n{name}"))))
        .collect();
    assert!(without.is_empty(), "no test begins with {without:?}");
}

#[test]
fn files_are_short_ascii_and_say_what_they_are() {
    let mut faults = Vec::new();
    for source in all_rust() {
        let path = &source.path;
        let in_src = path.starts_with("src/");
        let lines_max = if in_src { SOURCE_LINES_MAX } else { TEST_LINES_MAX };
        let lines = source.text.lines().count();
        if lines > lines_max {
            faults.push(format!(
                "{path}: {lines} lines, at most {lines_max}: split it by what a reader looks for"
            ));
        }
        if in_src && !source.shipped.is_empty() && !source.text.starts_with("//!") {
            faults
                .push(format!("{path}: begin with `//!`: what it is, what it promises, what it never does"));
        }
        if let Some(at) = source.text.find(|c: char| !c.is_ascii()) {
            let line = line_of(&source.text, at);
            faults.push(format!(
                "{path}:{line}: not ASCII: write \\u{{...}} in a literal, plain letters elsewhere"
            ));
        }
    }
    report(&faults);
}

/// The paths that the `mod name;` declarations of a file, and its `#[path]`s, may stand for.
fn declared(source: &Source) -> Vec<String> {
    let folder = Path::new(&source.path).parent().and_then(Path::to_str).unwrap_or_default();
    let stem = Path::new(&source.path).file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let is_root = matches!(stem, "mod" | "lib" | "main")
        || source.path.matches('/').count() == 1 && !folder.starts_with("src");
    let base = if is_root { folder.to_owned() } else { format!("{folder}/{stem}") };
    let names = occurrences(&source.code, "mod").filter_map(|at| {
        let name: String = source.code[at + 3..].trim_start().chars().take_while(|c| is_word(*c)).collect();
        let after = source.code[at + 3..].trim_start()[name.len()..].trim_start();
        (!name.is_empty() && after.starts_with(';')).then_some(name)
    });
    let usual = names.flat_map(|name| [format!("{base}/{name}.rs"), format!("{base}/{name}/mod.rs")]);
    let elsewhere = source.text.split("#[path = \"").skip(1).filter_map(|rest| rest.split('"').next());
    usual.chain(elsewhere.map(|path| resolved(folder, path))).collect()
}

/// `path` as seen from `folder`, without `..`.
fn resolved(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in path.split('/') {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

/// A file that no `mod` declares is compiled by nobody; a test that Cargo.toml does not list never runs.
#[test]
fn every_file_is_compiled() {
    let manifest: toml::Table = read(&root().join("Cargo.toml")).parse().expect("Cargo.toml is TOML");
    let mut reached: BTreeSet<String> = ["src/lib.rs", "src/main.rs"].map(str::to_owned).into();
    for kind in ["test", "bench", "bin"] {
        let targets = manifest.get(kind).and_then(toml::Value::as_array).into_iter().flatten();
        reached.extend(targets.filter_map(|t| t.get("path")?.as_str().map(str::to_owned)));
    }
    let sources = rust_sources(&["src", "kmod-free-tests", "benches"]);
    loop {
        let before = reached.len();
        for source in sources.iter().filter(|s| reached.contains(&s.path)).collect::<Vec<_>>() {
            reached.extend(declared(source));
        }
        if reached.len() == before {
            break;
        }
    }
    let lost = sources.iter().filter(|s| !reached.contains(&s.path));
    let faults = lost.map(|s| {
        format!("{}: nothing declares it: a `mod` in its parent, or a target in Cargo.toml", s.path)
    });
    report(&faults.collect::<Vec<_>>());
}

/// The Markdown files of the root and of `docs`.
fn documents() -> Vec<String> {
    let entries = std::fs::read_dir(root()).expect("the root can be listed");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    found.extend(files_below("docs").into_iter().filter(|path| path.ends_with(".md")));
    found.sort();
    found
}

/// Lines of a document outside of fenced code, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((number + 1, line));
        }
    }
    lines
}

#[test]
fn documents_have_one_title_and_links_that_lead_somewhere() {
    let mut faults = Vec::new();
    for path in documents() {
        let file = root().join(&path);
        let text = read(&file);
        let titles = prose(&text).iter().filter(|(_, line)| line.starts_with("# ")).count();
        if titles != 1 {
            faults.push(format!("{path}: {titles} titles of the first level: one a document"));
        }
        for (line, content) in prose(&text) {
            for link in content.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let target = link.split('#').next().unwrap_or_default();
                let outside = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
                if !outside && !file.with_file_name(target).exists() {
                    faults.push(format!("{path}:{line}: the link to {link} leads nowhere"));
                }
            }
        }
    }
    report(&faults);
}

/// `docs/DEPENDENCIES.md` has a line for each crate of Cargo.toml and for no other.
#[test]
fn each_dependency_is_explained() {
    let manifest: toml::Table = read(&root().join("Cargo.toml")).parse().expect("Cargo.toml is TOML");
    let sections =
        ["dependencies", "dev-dependencies"].map(|s| manifest.get(s).and_then(toml::Value::as_table));
    let used: BTreeSet<String> = sections.into_iter().flatten().flat_map(|s| s.keys().cloned()).collect();
    let document = read(&root().join("docs/DEPENDENCIES.md"));
    let (kept, _left_out) = document.split_once("\n## Not used").expect("the section of what is not used");
    let rows = kept.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next().map(str::to_owned));
    let explained: BTreeSet<String> = rows.collect();
    let missing: Vec<_> = used.difference(&explained).collect();
    let stale: Vec<_> = explained.difference(&used).collect();
    assert!(missing.is_empty(), "docs/DEPENDENCIES.md does not say what these are for: {missing:?}");
    assert!(stale.is_empty(), "docs/DEPENDENCIES.md explains what Cargo.toml no longer lists: {stale:?}");
}
