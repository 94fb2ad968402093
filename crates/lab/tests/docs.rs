//! Compares the documents with the programs: every setting, subcommand, flag, audit event, result field and source file
//! is described in its document, every link has a target, and table rows have the right number of cells.
//! `paramedic-link` checks docs/protocol.md.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::Programs;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn document(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a program in an empty environment, and returns its stdout and stderr.
fn output(program: &str, args: &[&str]) -> String {
    let home = tempfile::tempdir().unwrap();
    let ended = Command::new(Programs::built().path(program))
        .args(args)
        .env_clear()
        .env("HOME", home.path())
        .env("COLUMNS", "100")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    [ended.stdout, ended.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat()
}

/// Returns the names of all subcommands below the subcommand `path`, from the help text.
fn subcommands(program: &str, path: &[&str]) -> Vec<String> {
    let help = output(program, &[path, &["--help"]].concat());
    let mut names = Vec::new();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A line with two spaces of indent names a command; deeper lines continue its description.
    for line in listed.filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
        let name = line.split_whitespace().next().unwrap();
        if name != "help" {
            let path = [path, &[name]].concat();
            names.push(path.join(" "));
            names.extend(subcommands(program, &path));
        }
    }
    names
}

#[test]
fn every_subcommand_is_described() {
    let text = document("docs/operate.md");
    for program in ["reflector", "packetparamedic"] {
        let names = subcommands(program, &[]);
        assert!(names.len() > 8, "{names:?}");
        for name in names {
            let command = format!("{program} {name}");
            assert!(text.contains(&command), "docs/operate.md does not name `{command}`");
        }
    }
}

#[test]
fn every_setting_is_described_with_its_variable() {
    let text = document("docs/operate.md");
    let assert_row = |setting: &str, variable: &str| {
        let row = format!("| `{setting}` | `{variable}` |");
        assert!(text.contains(&row), "docs/operate.md has no row {row}");
    };
    for program in ["reflector", "packetparamedic"] {
        let template = output(program, &["config", "template"]);
        let settings = template.lines().filter_map(|line| line.strip_prefix('#')?.split_once(" = "));
        let settings = settings.map(|(name, _)| name).filter(|name| !name.contains(' ')).collect::<Vec<_>>();
        assert!(settings.len() > 10, "{settings:?}");
        for setting in settings {
            assert_row(setting, &format!("{}_{}", program.to_uppercase(), setting.to_uppercase()));
        }
    }
}

#[test]
fn every_flag_of_the_speed_test_is_described() {
    let text = document("docs/operate.md");
    let help = output("packetparamedic", &["speed-test", "--help"]);
    let options = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let mut count = 0;
    for option in options {
        let names = option.split([' ', ',']).filter(|word| word.starts_with('-')).collect::<Vec<_>>();
        // The flag is in backquotes, alone or with its value.
        let is_named = |name: &&str| [" ", "`", ","].iter().any(|end| text.contains(&format!("{name}{end}")));
        assert!(names.contains(&"--help") || names.iter().any(is_named), "docs/operate.md does not name {option}");
        count += 1;
    }
    assert!(count > 20, "{help}");
}

#[test]
fn every_audit_event_is_described() {
    let text = document("docs/operate.md");
    let source = document("crates/reflector/src/event.rs");
    let of_enum =
        source.lines().skip_while(|line| !line.starts_with("pub enum AuditEvent")).take_while(|line| *line != "}");
    let variants = of_enum.filter_map(|line| line.strip_prefix("    ")).filter_map(|line| {
        let name = line.split(|c: char| !c.is_alphanumeric()).next()?;
        name.starts_with(|c: char| c.is_ascii_uppercase()).then_some(name)
    });
    let mut count = 0;
    for variant in variants {
        let mut name = String::new();
        for c in variant.chars() {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(c.to_ascii_lowercase());
        }
        assert!(text.contains(&format!("`{name}`")), "docs/operate.md does not name the audit event `{name}`");
        count += 1;
    }
    assert!(count > 20, "{count} events found");
}

#[test]
fn every_reason_of_a_refusal_is_described() {
    let text = document("docs/operate.md");
    let source = document("crates/reflector/src/event.rs");
    let list = source.lines().skip_while(|line| *line != "refusal_reasons! {").take_while(|line| *line != "}");
    let words = list.filter_map(|line| line.split("=> \"").nth(1)?.split('"').next()).collect::<Vec<_>>();
    for word in &words {
        assert!(text.contains(&format!("| `{word}` |")), "docs/operate.md does not describe the refusal `{word}`");
    }
    assert!(words.len() > 10, "{words:?}");
}

#[test]
fn every_field_of_the_documents_is_described() {
    let text = document("docs/results.md");
    let schema = serde_json::from_str::<Value>(&output("packetparamedic", &["schema"])).unwrap();
    let mut names = BTreeSet::new();
    properties(&schema, &mut names);
    assert!(names.len() > 80, "{names:?}");
    for name in names {
        assert!(text.contains(&format!("`{name}`")), "docs/results.md does not name `{name}`");
    }
}

fn properties(schema: &Value, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(parts) => {
            for (key, part) in parts {
                if let ("properties", Value::Object(fields)) = (key.as_str(), part) {
                    names.extend(fields.keys().cloned());
                }
                properties(part, names);
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| properties(part, names)),
        _ => {}
    }
}

#[test]
fn every_source_file_is_listed_in_the_architecture() {
    let text = document("ARCHITECTURE.md");
    let chapters = text.split("\n### ").skip(1).map(|chapter| chapter.split("\n## ").next().unwrap());
    for chapter in chapters {
        let name = chapter.strip_prefix("`crates/").and_then(|rest| rest.split('`').next()).unwrap();
        if name == "lab" {
            continue;
        }
        for entry in fs::read_dir(root().join("crates").join(name).join("src")).unwrap() {
            let entry = entry.unwrap();
            let mut file = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                file.push('/');
            }
            let needs_no_entry = ["lib.rs", "tests.rs"].contains(&file.as_str());
            let is_listed = chapter.contains(&format!("`{file}`")) || needs_no_entry;
            assert!(is_listed, "ARCHITECTURE.md does not list crates/{name}/src/{file}");
        }
    }
}

#[test]
fn every_link_has_a_target() {
    let mut pages = Vec::new();
    collect(&root(), &mut pages);
    assert!(pages.len() > 15, "{pages:?}");
    let mut checked = 0;
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: the target of {link} does not exist", page.display());
            if !anchor.is_empty() {
                let headings = anchors(&fs::read_to_string(&target).unwrap());
                assert!(headings.contains(anchor), "{}: {link} names no heading of {headings:?}", page.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked} links found");
}

/// Returns the commands of both programs in inline code and indented blocks. Removes `sudo`, comments, and the rest of
/// the shell line, such as a pipe.
fn commands(text: &str) -> Vec<String> {
    let inline = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let blocks = text.lines().filter_map(|line| line.strip_prefix("    "));
    let is_command = |code: &&str| ["reflector ", "packetparamedic "].iter().any(|program| code.starts_with(program));
    let shell = |code: &str| {
        let ends = [" #", " &", " |", " \\", " >", "  "].iter().filter_map(|end| code.find(end)).min();
        code[..ends.unwrap_or(code.len())].to_owned()
    };
    let bare = |code: &str| code.trim().trim_start_matches("$ ").trim_start_matches("sudo ").to_owned();
    let found = inline.chain(blocks).map(bare).collect::<Vec<_>>();
    found.iter().map(String::as_str).filter(is_command).map(shell).collect()
}

#[test]
fn every_command_in_the_documents_is_one_of_the_programs() {
    let mut pages = Vec::new();
    collect(&root().join("docs"), &mut pages);
    pages.push(root().join("README.md"));
    let mut checked = BTreeSet::new();
    for page in &pages {
        for command in commands(&fs::read_to_string(page).unwrap()) {
            // A shortened Endpoint ID, and prose in code.
            if command.contains('…') || !checked.insert(command.clone()) {
                continue;
            }
            let program = Programs::built().path(command.split(' ').next().unwrap());
            // Asking for help runs nothing, and still refuses what it does not know.
            let ended = Command::new("/bin/sh")
                .args(["-c", &format!("{command} --help")])
                .env_clear()
                .env("PATH", program.parent().unwrap())
                .output()
                .unwrap();
            assert!(ended.status.success(), "{}: `{command}`: {ended:?}", page.display());
        }
    }
    assert!(checked.len() > 50, "{checked:?}");
}

/// Adds every Markdown file below `folder` that belongs to the project to `pages`.
fn collect(folder: &Path, pages: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !["target", "node_modules"].contains(&name) && (!name.starts_with('.') || name == ".github") {
                collect(&path, pages);
            }
        } else if name.ends_with(".md") {
            pages.push(path);
        }
    }
}

/// Returns the lines outside code blocks, with inline code replaced by `x`.
fn prose(text: &str) -> impl Iterator<Item = String> {
    let mut is_code = false;
    text.lines().filter_map(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        let is_prose = !is_code && !is_fence && !line.starts_with("    ");
        is_prose.then(|| line.split('`').step_by(2).collect::<Vec<_>>().join("x"))
    })
}

fn links(text: &str) -> Vec<String> {
    let of_line = |line: String| {
        let links = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        links.map(|(link, _)| link.to_owned()).collect::<Vec<_>>()
    };
    prose(text).flat_map(of_line).collect()
}

/// Returns the anchors of a page's headings, as GitHub and others generate them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let headings = text.lines().filter(|line| {
        is_code ^= line.starts_with("```");
        !is_code && line.starts_with('#')
    });
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// Counts the cells in a row of a table. A `|` inside code or behind a backslash does not separate cells.
fn cells(row: &str) -> usize {
    let mut is_code = false;
    let mut last = ' ';
    let mut separators = 0;
    for character in row.trim().chars() {
        is_code ^= character == '`';
        separators += usize::from(character == '|' && !is_code && last != '\\');
        last = character;
    }
    separators.saturating_sub(1)
}

#[test]
fn every_row_of_a_table_has_as_many_cells_as_its_head() {
    let mut pages = Vec::new();
    collect(&root(), &mut pages);
    let mut checked = 0;
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        let mut head = None;
        for (number, line) in text.lines().enumerate() {
            if !line.starts_with('|') {
                head = None;
                continue;
            }
            let expected = *head.get_or_insert_with(|| cells(line));
            assert_eq!(cells(line), expected, "{}:{}: {line}", page.display(), number + 1);
            checked += 1;
        }
    }
    assert!(checked > 300, "{checked} rows");
}

/// Whether two adjacent lines outside fences belong to one indented code block, but only one is indented.
fn breaks_code_block(before: &str, line: &str) -> bool {
    let is_code = |line: &str| line.starts_with("    ");
    // The second line of a list entry is indented, too.
    let is_list = |line: &str| line.starts_with("- ") || line.starts_with("  ");
    let both = !before.trim().is_empty() && !line.trim().is_empty();
    both && is_code(before) != is_code(line) && (is_code(before) || !is_list(before))
}

#[test]
fn every_line_of_an_indented_code_block_is_indented() {
    assert!(breaks_code_block("reflector status  # a command", "    reflector peers"));
    assert!(breaks_code_block("    reflector status", "reflector peers"));
    assert!(!breaks_code_block("- an entry", "    and its second line"));
    let command = |line: &str| {
        ["reflector ", "packetparamedic "].iter().any(|program| line.starts_with(program)) && line.contains("  ")
    };
    let mut pages = Vec::new();
    collect(&root(), &mut pages);
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        let (mut is_fenced, mut before) = (false, "");
        for (number, line) in text.lines().enumerate() {
            if line.starts_with("```") {
                is_fenced = !is_fenced;
                before = "";
                continue;
            }
            if !is_fenced {
                let place = format!("{}:{}", page.display(), number + 1);
                assert!(!breaks_code_block(before, line), "{place} ends or begins a code block: {line}");
                assert!(!command(line), "{place} is a command outside a code block: {line}");
            }
            before = line;
        }
    }
}
