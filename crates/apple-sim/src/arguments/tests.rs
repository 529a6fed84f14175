use super::*;
use crate::commands::find;
use crate::error::Failure;
use crate::settings::Release;

/// Parses a command line of words without spaces in them.
fn parsed(line: &str, release: Release) -> Result<Matches, Failure> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let (command, own) = find(&words).expect("a command");
    parse(command, &words[own..], release)
}

fn newest(line: &str) -> Result<Matches, Failure> {
    parsed(line, Release::V1_2_2)
}

fn message(line: &str) -> String {
    match newest(line) {
        Err(Failure::Usage { message, .. }) => message,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn options_come_before_the_image_in_any_order() {
    let matches =
        newest("run -it --name=x -m 1g -e A=1 --env B --cap-add ALL -l k=v --rm -d img cmd -x --name y")
            .unwrap();
    assert_eq!(matches.one("name"), Some("x"));
    assert_eq!(matches.all("env"), ["A=1", "B"]);
    for flag in ["interactive", "tty", "rm", "detach"] {
        assert!(matches.flag(flag), "{flag}");
    }
    assert_eq!(matches.positionals(), ["img", "cmd", "-x", "--name", "y"]);
    assert!(newest("run --remove img").unwrap().flag("rm"));
}

#[test]
fn what_follows_the_image_is_taken_as_it_stands() {
    assert_eq!(newest("run img -- cmd --help").unwrap().positionals(), ["img", "--", "cmd", "--help"]);
    assert_eq!(newest("exec id -- ls").unwrap().positionals(), ["id", "--", "ls"]);
    // Before it the terminator is one.
    assert_eq!(newest("run -- img cmd").unwrap().positionals(), ["img", "cmd"]);
}

#[test]
fn values_that_begin_with_a_dash_need_a_sign() {
    assert_eq!(message("run --name -x img"), "Missing value for '--name <name>'");
    assert_eq!(newest("run --entrypoint=-x img").unwrap().one("entrypoint"), Some("-x"));
    assert_eq!(newest("run -e=A=b img").unwrap().all("env"), ["A=b"]);
    assert_eq!(message("stop -t -1 id"), "Missing value for '-t <time>'");
    assert_eq!(newest("stop --time=-1 id").unwrap().number::<i32>("time"), Some(-1));
    // An empty value is none.
    assert_eq!(message("run --name="), "Missing value for '--name <name>'");
    assert_eq!(newest("run --name= x img").unwrap().one("name"), Some("x"));
}

#[test]
fn letters_are_not_joined_with_their_value() {
    assert_eq!(message("run -c4 img"), "The value 'img' is invalid for '-c <cpus>'");
    let expected = "Unknown option '-c4'\n   or: Missing value for '-c <cpus>' in '-c4'";
    assert_eq!(message("run -c4"), expected);
    assert_eq!(newest("run -c 4 img").unwrap().number::<i64>("cpus"), Some(4));
}

#[test]
fn mistakes_are_usage_errors() {
    for (line, expected) in [
        ("run", "Missing expected argument '<image>'"),
        ("run --nonsense", "Missing expected argument '<image>'"),
        ("run --nonsense img", "Unknown option '--nonsense'"),
        ("run --nam x img", "Unknown option '--nam'. Did you mean '--name'?"),
        ("run -z img", "Unknown option '-z'"),
        ("run --detach=yes img", "The option '--detach' does not take any value, but 'yes' was specified."),
        ("run --cpus four img", "The value 'four' is invalid for '--cpus <cpus>'"),
        ("run --uid -1 img", "Missing value for '--uid <uid>'"),
        ("run --uid=-1 img", "The value '-1' is invalid for '--uid <uid>'"),
        ("run --name", "Missing value for '--name <name>'"),
        (
            "run --progress loud img",
            "The value 'loud' is invalid for '--progress <type>'. Please provide one of 'auto', 'none', 'ansi', 'plain' or 'color'.",
        ),
        ("create --progress none img", "Unknown option '--progress'"),
        ("start", "Missing expected argument '<container-id>'"),
        ("start a b", "Unexpected argument 'b'"),
        ("start a b c", "2 unexpected arguments: 'b', 'c'"),
        ("list extra", "Unexpected argument 'extra'"),
        (
            "list --format xml",
            "The value 'xml' is invalid for '--format <format>'. Please provide one of 'json', 'table', 'yaml' or 'toml'.",
        ),
        ("exec id", "Missing expected argument '<arguments> ...'"),
        ("inspect", "Missing expected argument '<container-ids> ...'"),
        ("run ---x img", "Invalid option: ---x"),
        (
            "system start --timeout x",
            "The value 'x' is invalid for '--timeout <timeout>': Invalid timeout value: x",
        ),
        ("network create --subnet x n", "The value 'x' is invalid for '--subnet <subnet>': invalid CIDR: x"),
    ] {
        assert_eq!(message(line), expected, "{line}");
    }
}

#[test]
fn a_missing_value_comes_with_help() {
    let Err(Failure::Usage { help, .. }) = newest("run --name") else { panic!("no usage error") };
    assert_eq!(help, "--name <name>  The id");
}

#[test]
fn help_outranks_mistakes_and_is_captured() {
    assert!(matches!(newest("run --help"), Err(Failure::Help(_))));
    assert!(matches!(newest("run --nonsense -h"), Err(Failure::Help(_))));
    assert!(newest("run img --help").is_ok());
}

#[test]
fn ids_may_be_missing_as_far_as_the_parser_knows() {
    for line in ["stop", "kill", "delete", "rm -f", "stats", "image rm", "network delete", "volume rm"] {
        assert!(newest(line).is_ok(), "{line}");
    }
    assert_eq!(newest("rm a -f b").unwrap().positionals(), ["a", "b"]);
}

#[test]
fn options_have_releases() {
    for (option, since) in [
        ("--masked-path=NONE", Release::V1_2_1),
        ("--read-only-path=NONE", Release::V1_2_1),
        ("--kernel-arg=x", Release::V1_2_0),
    ] {
        for release in Release::ALL {
            let known = parsed(&format!("run {option} img"), release).is_ok();
            assert_eq!(known, release >= since, "{option} {release}");
        }
    }
}

#[test]
fn the_usage_is_short_where_there_is_much() {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let shown = |line: &str| usage(find(&words(line)).unwrap().0, Release::V1_2_2);
    assert_eq!(
        shown("run"),
        "Usage: container run [<options>] <image> [<arguments> ...]\n  See 'container run --help' for more information."
    );
    assert!(shown("stop").starts_with(
        "Usage: container stop [--all] [--signal <signal>] [--time <time>] [--debug] [<container-ids> ...]\n"
    ));
    assert!(shown("ls").starts_with("Usage: container list "));
}
