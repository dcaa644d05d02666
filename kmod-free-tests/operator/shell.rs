//! Completions and manual pages name every verb there is.

use std::collections::BTreeSet;
use std::path::Path;

use crate::daemon::Scratch;
use crate::daemon::sinter;
use crate::have;
use crate::run;

fn printed(scratch: &Scratch, arguments: &[&str]) -> String {
    let output = sinter(scratch.path()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", crate::both(&output));
    assert!(output.stderr.is_empty(), "{arguments:?}: {}", crate::both(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The verbs below `above`, as its help lists them, and those below these; without `help` itself.
fn verbs(scratch: &Scratch, above: &[String]) -> Vec<Vec<String>> {
    let mut arguments: Vec<&str> = above.iter().map(String::as_str).collect();
    arguments.push("--help");
    let help = printed(scratch, &arguments);
    let Some((_, list)) = help.split_once("Commands:\n") else { return Vec::new() };
    let names = list.lines().take_while(|line| !line.is_empty()).filter_map(|line| {
        let name = line.strip_prefix("  ")?.split_whitespace().next()?;
        (!line.starts_with("   ") && name != "help").then(|| name.to_owned())
    });
    let mut found = Vec::new();
    for name in names {
        let path = [above, &[name]].concat();
        let below = verbs(scratch, &path);
        found.push(path);
        found.extend(below);
    }
    found
}

fn all_verbs(scratch: &Scratch) -> Vec<Vec<String>> {
    let verbs = verbs(scratch, &[]);
    assert!(verbs.len() > 12 && verbs.contains(&vec!["volume".to_owned(), "create".to_owned()]), "{verbs:?}");
    verbs
}

#[test]
fn completions_name_every_verb_for_every_shell() {
    let scratch = Scratch::new();
    let verbs = all_verbs(&scratch);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&scratch, &["completions", shell]);
        let words: BTreeSet<&str> =
            script.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).collect();
        for verb in &verbs {
            let last = verb.last().unwrap().as_str();
            assert!(words.contains(last), "{shell} does not complete {verb:?}");
        }
        // Fish writes long flags without their dashes.
        for flag in ["data-dir", "accept-loss", "insecure-open"] {
            assert!(script.contains(flag), "{shell} does not complete --{flag}");
        }
    }
    let refused = sinter(scratch.path()).args(["completions", "cobol"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", crate::both(&refused));
}

#[test]
fn shells_take_their_completions() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = scratch.join(shell);
        std::fs::write(&script, printed(&scratch, &["completions", shell])).unwrap();
        if have(shell, "that it takes its completions") {
            run(shell, &["-n", script.to_str().unwrap()], b"");
        }
    }
    if have("bash", "what it completes") {
        let ask = |words: &str, word: &str| {
            let count = words.split(' ').count();
            let script = scratch.join("bash").display().to_string();
            let program = format!(
                "source '{script}'; COMP_WORDS=({words} '{word}'); COMP_CWORD={count}; \
                 _sinter sinter '{word}' x; echo \"${{COMPREPLY[*]}}\""
            );
            run("bash", &["-c", &program], b"").trim().to_owned()
        };
        assert_eq!(ask("sinter", "vol"), "volume");
        assert_eq!(ask("sinter volume", "cr"), "create");
        assert_eq!(ask("sinter serve", "--accept"), "--accept-loss");
        assert!(ask("sinter completions", "").contains("fish"));
    }
    if have("fish", "what it completes") {
        let script = scratch.join("fish").display().to_string();
        let said = run(
            "fish",
            &["--no-config", "-c", &format!("source '{script}'; complete -C 'sinter volume '")],
            b"",
        );
        assert!(said.contains("create\t") && said.contains("delete\t"), "{said}");
    }
}

#[test]
fn the_manual_has_a_page_for_every_verb() {
    let scratch = Scratch::new();
    let verbs = all_verbs(&scratch);
    let main = printed(&scratch, &["man"]);
    for verb in verbs.iter().filter(|verb| verb.len() == 1) {
        assert!(main.contains(&format!("sinter\\-{}(1)", verb[0])), "{verb:?} is not on the main page");
    }
    let folder = scratch.join("share/man/man1");
    assert_eq!(printed(&scratch, &["man", "--dir", folder.to_str().unwrap()]), "");
    let written: BTreeSet<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let wanted: BTreeSet<String> = verbs
        .iter()
        .map(|verb| format!("sinter-{}.1", verb.join("-")))
        .chain(["sinter.1".to_owned()])
        .collect();
    assert_eq!(written, wanted);
    assert_eq!(std::fs::read_to_string(folder.join("sinter.1")).unwrap(), main);
    for name in &written {
        check_page(&folder.join(name), name);
    }
    let create = std::fs::read_to_string(folder.join("sinter-volume-create.1")).unwrap();
    let tags = "[\\fB\\-\\-tag\\fR \\fIKEY=VALUE\\fR]...";
    assert!(create.contains("\\-\\-description") && create.contains("sinter volume create"), "{create}");
    assert!(create.contains(tags) && create.contains("\\fINAME\\fR \\fISIZE\\fR\n"), "{create}");

    let refused =
        sinter(scratch.path()).args(["man", "--dir"]).arg(folder.join("sinter.1")).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "a file is no directory: {}", crate::both(&refused));
}

fn check_page(path: &Path, name: &str) {
    let page = std::fs::read_to_string(path).unwrap();
    let title = name.strip_suffix(".1").unwrap();
    assert!(page.contains(&format!(".TH {title} 1")), "{page}");
    for section in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH \"EXIT STATUS\""] {
        assert!(page.contains(section), "{name} has no {section}");
    }
    assert_eq!(page.to_lowercase().matches("exit status").count(), 1, "{page}");
    assert!(page.contains("\n.TP\n\\fB130\\fR\ninterrupted\n"), "{page}");
    if have("groff", "that it formats the manual's pages") {
        let said = run("groff", &["-man", "-Tascii", "-ww", "-z", path.to_str().unwrap()], b"");
        assert_eq!(said, "", "{name}");
    }
}
