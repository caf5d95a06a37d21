//! docs/traffic.md does what it says: its manifests are written and its commands run, and they print what stands there, but for numbers.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_tests::{PATIENCE, World, eventually};

/// What stands in a fence of the page.
enum Step {
    Manifests(String),
    /// Commands, and what each prints.
    Runs(Vec<(String, String)>),
}

#[test]
fn the_recipes_do_what_they_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/traffic.md")).expect("the page is there");
    let example = root.join("examples/traffic");
    let mesh = fs::read_to_string(example.join("mesh.yaml")).expect("the example is there");
    // As a copy of its own: the page has its reader write to it.
    let mesh = mesh
        .replace("[traffic.yaml]", "[\"@WORK@/traffic.yaml\"]")
        .replace("prices.py", "@WORK@/prices.py")
        .replace("python3,", "\"@PYTHON@\",");
    let world = World::up_with(&mesh, |work| {
        for file in ["prices.py", "traffic.yaml", "mesh.yaml"] {
            fs::copy(example.join(file), work.join(file)).expect("copied");
        }
    });
    let steps = steps(&page);
    assert!(steps.len() > 12, "the page has recipes: {}", steps.len());
    for step in steps {
        match step {
            Step::Manifests(text) => {
                let before = in_force(&world);
                let (new, file) = (world.work().join(".new"), world.work().join("traffic.yaml"));
                fs::write(&new, text).expect("the directory is ours");
                fs::rename(&new, &file).expect("the directory is ours");
                eventually("what was written is in force", || (in_force(&world) != before).then_some(()));
            }
            Step::Runs(runs) => print(&world, &runs),
        }
    }
}

/// What a caller's sidecar does with the services that it calls, and what a server's takes.
fn in_force(world: &World) -> Vec<Value> {
    let caller = world.config("shop/till-0");
    let traffic =
        caller["addresses"].as_object().into_iter().flat_map(|all| all.values()).map(|service| service["traffic"].clone());
    traffic.chain([world.config("shop/prices-v2-0")["inbound"].clone()]).collect()
}

/// Runs what a fence has, from its first command again as long as one prints something else: a breaker has times of its own, and
/// on a slow machine what a later command shows may be over, which no repetition of that command alone brings back.
fn print(world: &World, runs: &[(String, String)]) {
    let end = Instant::now() + PATIENCE;
    while let Some(difference) = runs.iter().find_map(|(command, printed)| differs(world, command, &masked(printed))) {
        assert!(Instant::now() < end, "{difference}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What a command prints in place of this.
fn differs(world: &World, command: &str, expected: &str) -> Option<String> {
    let mut shell: Command = world.shell(command);
    let output = shell.current_dir(world.work()).output().expect("a shell runs");
    let found = masked(&String::from_utf8_lossy(&output.stdout));
    let errors = String::from_utf8_lossy(&output.stderr);
    (found != expected).then(|| format!("{command}\nprints\n{found}{errors}\nand should print\n{expected}"))
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for fence in page.split("\n```").skip(1).step_by(2) {
        let (kind, text) = fence.split_once('\n').expect("a fence has lines");
        match kind {
            "yaml" => steps.push(Step::Manifests(text.to_owned())),
            "console" => {
                let runs = format!("\n{text}");
                let runs = runs.split("\n$ ").skip(1).map(|run| run.split_once('\n').unwrap_or((run, "")));
                steps.push(Step::Runs(runs.map(|(command, printed)| (command.to_owned(), printed.to_owned())).collect()));
            }
            other => panic!("{other:?} is no kind of fence that this test knows"),
        }
    }
    steps
}

/// Without its numbers, and with one space between its words.
fn masked(text: &str) -> String {
    let mut masked = String::new();
    for line in text.lines() {
        let words: Vec<String> = line.split_whitespace().map(number_free).collect();
        masked.push_str(&words.join(" "));
        masked.push('\n');
    }
    masked.trim().to_owned()
}

fn number_free(word: &str) -> String {
    let mut free = String::new();
    for c in word.chars() {
        let is_number = c.is_ascii_digit() || (c == '.' && free.ends_with('#'));
        match is_number {
            true if free.ends_with('#') => {}
            true => free.push('#'),
            false => free.push(c),
        }
    }
    free
}
