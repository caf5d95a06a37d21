//! The recipes in docs/ do what they say: their manifests are written and their commands run, and they print what stands there, but for numbers.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_tests::{PATIENCE, World, eventually, require};

/// What stands in a fence of the page.
enum Step {
    Manifests(String),
    /// Commands, and what each prints.
    Runs(Vec<(String, String)>),
}

/// A page, and the mesh that it plays with.
struct Recipes {
    page: &'static str,
    example: &'static str,
    /// The program that the example's workloads run.
    program: &'static str,
    /// What the page has its reader write to.
    manifests: &'static str,
    /// Whose sidecars tell whether it is in force.
    replicas: &'static [&'static str],
    /// Whether the program stands for what is outside, and runs on the mesh's own network.
    is_outside: bool,
}

#[test]
fn traffic_goes_as_the_page_says() {
    Recipes {
        page: "docs/traffic.md",
        example: "examples/traffic",
        program: "prices.py",
        manifests: "traffic.yaml",
        replicas: &["shop/till-0", "shop/prices-v2-0"],
        is_outside: false,
    }
    .run();
}

#[test]
fn policy_decides_as_the_page_says() {
    Recipes {
        page: "docs/policy.md",
        example: "examples/policy",
        program: "orders.py",
        manifests: "policies.yaml",
        replicas: &["shop/orders-0", "shop/orders-1"],
        is_outside: false,
    }
    .run();
}

#[test]
fn network_policies_hold_as_the_page_says() {
    Recipes {
        page: "docs/network-policy.md",
        example: "examples/network-policy",
        program: "orders.py",
        manifests: "policies.yaml",
        replicas: &["shop/orders-0", "shop/report-0"],
        is_outside: false,
    }
    .run();
}

#[test]
fn identities_are_believed_as_the_page_says() {
    Recipes {
        page: "docs/identity.md",
        example: "examples/policy",
        program: "orders.py",
        manifests: "policies.yaml",
        replicas: &["shop/orders-0", "shop/orders-1"],
        is_outside: false,
    }
    .run();
}

#[test]
fn a_namespace_becomes_strict_as_the_page_says() {
    Recipes {
        page: "docs/strict.md",
        example: "examples/strict",
        program: "stock.py",
        manifests: "policies.yaml",
        replicas: &["shop/stock-0"],
        is_outside: false,
    }
    .run();
}

#[test]
fn what_is_called_becomes_policies_as_the_page_says() {
    Recipes {
        page: "docs/suggest.md",
        example: "examples/strict",
        program: "stock.py",
        manifests: "policies.yaml",
        replicas: &["shop/stock-0"],
        is_outside: false,
    }
    .run();
}

#[test]
fn tokens_open_as_the_page_says() {
    require(&["openssl"]);
    Recipes {
        page: "docs/jwt.md",
        example: "examples/jwt",
        program: "tokens.py",
        manifests: "policies.yaml",
        replicas: &["shop/notes-0"],
        is_outside: false,
    }
    .run();
}

#[test]
fn what_leaves_the_mesh_is_what_the_page_lets_out() {
    require(&["curl", "openssl"]);
    Recipes {
        page: "docs/egress.md",
        example: "examples/egress",
        program: "outside.py",
        manifests: "egress.yaml",
        replicas: &["shop/web-0", "shop/till-0"],
        is_outside: true,
    }
    .run();
}

impl Recipes {
    fn run(&self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let page = fs::read_to_string(root.join(self.page)).expect("the page is there");
        let example = root.join(self.example);
        let mesh = fs::read_to_string(example.join("mesh.yaml")).expect("the example is there");
        // As a copy of its own: the page has its reader write to it.
        let mesh = mesh
            .replace(&format!("[{}]", self.manifests), &format!("[\"@WORK@/{}\"]", self.manifests))
            .replace(self.program, &format!("@WORK@/{}", self.program))
            .replace("python3,", "\"@PYTHON@\",");
        let world = World::up_with(&mesh, |work| {
            for file in [self.program, self.manifests, "mesh.yaml"] {
                fs::copy(example.join(file), work.join(file)).expect("copied");
            }
        });
        let program = world.work().join(self.program);
        let _outside = self.is_outside.then(|| {
            let running = world.lab(&["python3", &program.to_string_lossy()]);
            eventually("what is outside serves", || running.stdout().contains("ready").then_some(()));
            running
        });
        let steps = steps(&page);
        assert!(steps.len() > 4, "the page has recipes: {}", steps.len());
        for step in steps {
            match step {
                Step::Manifests(text) => {
                    let before = in_force(&world, self.replicas);
                    let (new, file) = (world.work().join(".new"), world.work().join(self.manifests));
                    fs::write(&new, text).expect("the directory is ours");
                    fs::rename(&new, &file).expect("the directory is ours");
                    eventually("what was written is in force", || (in_force(&world, self.replicas) != before).then_some(()));
                }
                Step::Runs(runs) => print(&world, &runs),
            }
        }
    }
}

/// What sidecars do with the services that their workloads call, and what they let in.
fn in_force(world: &World, replicas: &[&str]) -> Vec<Value> {
    let of = |replica: &&str| {
        let config = world.config(replica);
        let services = config["addresses"].as_object().into_iter().flat_map(|all| all.values());
        let more = ["inbound", "outbound", "anchors", "denied"].map(|field| config[field].clone());
        services.map(|service| service["traffic"].clone()).chain(more).collect::<Vec<_>>()
    };
    replicas.iter().flat_map(of).collect()
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

/// Without its numbers and hashes, but for a status code at the beginning of a line, and with one space between its words.
fn masked(text: &str) -> String {
    let mut masked = String::new();
    for line in text.lines() {
        let mut words = line.split_whitespace().peekable();
        let mut free = Vec::new();
        free.extend(words.next_if(|first| first.starts_with("HTTP/")).map(str::to_owned));
        free.extend(words.next_if(|word| is_status(word)).map(str::to_owned));
        free.extend(words.map(number_free));
        masked.push_str(&free.join(" "));
        masked.push('\n');
    }
    masked.trim().to_owned()
}

fn is_status(word: &str) -> bool {
    matches!(word.as_bytes(), [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9'])
}

fn number_free(word: &str) -> String {
    if word.len() >= 12 && word.bytes().all(|b| b.is_ascii_hexdigit()) {
        return "#".to_owned();
    }
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
