//! The numbers in docs/security.md are those of the code.
//!
//! In a table with a column `number` and a column `set by`, the number is compared with the constants
//! (`crate::module::CONSTANT`) and the defaults of the flags (`--flag`) that the row names. Every constant `MAX_...` of the crates
//! that read what clients send is in such a row.

use std::collections::BTreeMap;
use std::path::Path;

use syn::visit::Visit;

use crate::{crates, files, root};

/// The crates that read what clients send.
const READERS: [&str; 8] = [
    "auth", "engine", "formats", "jobs", "registry", "sampling", "server", "service",
];
/// Constants that bound what Lory writes, or what no client can make larger.
const INTERNAL: &[&str] = &[
    "jobs::evaluation::summary::MAX_SAMPLES",
    "jobs::records::thresholds::MAX_BOUND",
    "registry::persona_file::MAX_BOUND",
    "registry::registry::MAX_TRIES",
    "registry::store::MAX_CONCURRENT_READS",
    "server::error::MAX_RETRY_AFTER",
    "server::routes::files::MAX_FORM",
    "server::routes::metrics::engine_metrics::MAX_NAMES",
    "service::archive::MAX_SKIPPED",
    "service::grammar::constraint::MAX_MESSAGE",
    "service::votes::MAX_LOGGED",
];

/// The constants of one file, without those of its tests.
#[derive(Default)]
struct Constants<'ast>(BTreeMap<String, &'ast syn::Expr>);

impl<'ast> Visit<'ast> for Constants<'ast> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = |attribute: &syn::Attribute| match &attribute.meta {
            syn::Meta::List(list) => {
                list.path.is_ident("cfg") && list.tokens.to_string().contains("test")
            }
            _ => false,
        };
        if !item.attrs.iter().any(is_test) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.0.insert(item.ident.to_string(), &item.expr);
    }
}

/// The value of a constant expression: a number, or a duration in seconds.
fn value(constants: &Constants<'_>, expr: &syn::Expr) -> Option<f64> {
    match expr {
        syn::Expr::Lit(literal) => match &literal.lit {
            syn::Lit::Int(int) => int.base10_parse().ok(),
            syn::Lit::Float(float) => float.base10_parse().ok(),
            _ => None,
        },
        syn::Expr::Paren(inner) => value(constants, &inner.expr),
        syn::Expr::Cast(inner) => value(constants, &inner.expr),
        syn::Expr::Binary(both) => {
            let (left, right) = (
                value(constants, &both.left)?,
                value(constants, &both.right)?,
            );
            match both.op {
                syn::BinOp::Add(_) => Some(left + right),
                syn::BinOp::Sub(_) => Some(left - right),
                syn::BinOp::Mul(_) => Some(left * right),
                syn::BinOp::Div(_) => Some(left / right),
                syn::BinOp::Shl(_) => Some(left * right.exp2()),
                _ => None,
            }
        }
        syn::Expr::Call(call) => {
            let syn::Expr::Path(function) = &*call.func else {
                return None;
            };
            let unit = match function.path.segments.last()?.ident.to_string().as_str() {
                "from_secs" => 1.0,
                "from_millis" => 1e-3,
                "from_mins" => 60.0,
                "from_hours" => 3600.0,
                _ => return None,
            };
            Some(unit * value(constants, call.args.first()?)?)
        }
        syn::Expr::Path(path) => {
            let parts: Vec<String> = path
                .path
                .segments
                .iter()
                .map(|part| part.ident.to_string())
                .collect();
            match parts.as_slice() {
                [name] => value(constants, constants.0.get(name)?),
                parts => constant(&parts.join("::")),
            }
        }
        _ => None,
    }
}

/// The value of `crate::module::CONSTANT`; none if there is no such constant.
fn constant(path: &str) -> Option<f64> {
    let (module, name) = path.rsplit_once("::")?;
    let mut parts = module.split("::");
    let source = crates().get(parts.next()?)?.join("src");
    let module = parts.fold(source, |path, part| path.join(part));
    let candidates = [
        module.with_extension("rs"),
        module.join("mod.rs"),
        module.join("lib.rs"),
    ];
    candidates
        .iter()
        .filter(|file| file.is_file())
        .find_map(|file| {
            let syntax = syn::parse_file(&std::fs::read_to_string(file).unwrap()).unwrap();
            let mut constants = Constants::default();
            constants.visit_file(&syntax);
            value(&constants, constants.0.get(name)?)
        })
}

/// The defaults of the flags of `lory serve`, as they are written there.
#[derive(Default)]
struct Defaults(BTreeMap<String, String>);

impl<'ast> Visit<'ast> for Defaults {
    fn visit_field(&mut self, field: &'ast syn::Field) {
        let Some(name) = &field.ident else { return };
        for attribute in &field.attrs {
            let syn::Meta::List(list) = &attribute.meta else {
                continue;
            };
            let tokens = list.tokens.to_string();
            let parts = tokens.split(',').map(str::trim);
            let default = parts
                .filter_map(|part| part.strip_prefix("default_value"))
                .next();
            if let Some((_, default)) = default.and_then(|rest| rest.split_once('=')) {
                let default = default.trim().trim_matches('"').to_owned();
                self.0.insert(name.to_string().replace('_', "-"), default);
            }
        }
    }
}

fn defaults() -> BTreeMap<String, String> {
    let mut defaults = Defaults::default();
    for folder in ["serve", "flags"] {
        for file in files(&root().join("crates/lory/src/cli").join(folder), &[".rs"]) {
            let text = std::fs::read_to_string(&file).unwrap();
            defaults.visit_file(&syn::parse_file(&text).unwrap());
        }
    }
    defaults.0
}

/// A number with its unit, in bytes or seconds: `4 MiB`, `100ms`, `10,000`. None if the text does not begin with one.
fn number(text: &str) -> Option<f64> {
    let text = text.replace([',', '_'], "");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (digits, rest) = text.split_at(end.unwrap_or(text.len()));
    let unit = rest.split_whitespace().next().unwrap_or("");
    let factor = match unit.trim_end_matches([';', '.', ')']) {
        "KiB" => 1024.0,
        "MiB" => f64::from(1 << 20),
        "GiB" => f64::from(1 << 30),
        "ms" => 1e-3,
        "min" => 60.0,
        "h" => 3600.0,
        "days" => 86400.0,
        _ => 1.0,
    };
    Some(digits.parse::<f64>().ok()? * factor)
}

/// What a row names as its source, with the number there.
fn sources(cell: &str, defaults: &BTreeMap<String, String>) -> Vec<(String, Option<f64>)> {
    let code = cell.split('`').skip(1).step_by(2);
    let known = code.filter_map(|code| match code.strip_prefix("--") {
        Some(flag) => Some((code, defaults.get(flag).and_then(|text| number(text)))),
        None if code.contains("::") => Some((code, constant(code))),
        None => None,
    });
    known
        .map(|(code, value)| (code.to_owned(), value))
        .collect()
}

#[test]
fn limits_in_security_md_are_those_of_the_code() {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let defaults = defaults();
    let mut columns: Option<(usize, usize)> = None;
    let (mut checked, mut wrong) = (0, Vec::new());
    for (i, line) in text.lines().enumerate() {
        let cells: Vec<&str> = line
            .split(" | ")
            .map(|cell| cell.trim_matches(['|', ' ']))
            .collect();
        if !line.starts_with('|') {
            columns = None;
        } else if let Some((number_at, source_at)) = columns {
            let (Some(written), Some(source)) = (cells.get(number_at), cells.get(source_at)) else {
                continue;
            };
            for (name, value) in sources(source, &defaults) {
                let written = number(written);
                checked += 1;
                let has_default = value.is_some() || !name.starts_with("--");
                if has_default && (value.is_none() || value != written)
                    || !has_default && written.is_some()
                {
                    wrong.push(format!(
                        "{}: {name} is {value:?}, the table has {written:?}",
                        i + 1
                    ));
                }
            }
        } else {
            let at = |title: &str| cells.iter().position(|cell| *cell == title);
            columns = at("number").zip(at("set by"));
        }
    }
    assert!(wrong.is_empty(), "docs/security.md:\n{}", wrong.join("\n"));
    assert!(checked > 60, "only {checked} numbers were found");
}

/// The path of a source file's module: `service::grammar::schema`.
fn module_of(name: &str, file: &Path, source: &Path) -> String {
    let path = file.strip_prefix(source).unwrap().with_extension("");
    let parts = path.iter().map(|part| part.to_str().unwrap());
    let parts: Vec<&str> = [name].into_iter().chain(parts).collect();
    let last = parts.len() - 1;
    match parts[last] {
        "mod" | "lib" => parts[..last].join("::"),
        _ => parts.join("::"),
    }
}

#[test]
fn every_limit_of_what_clients_send_is_in_security_md() {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let mut missing = Vec::new();
    for name in READERS {
        let source = crates()[name].join("src");
        for file in files(&source, &[".rs"]) {
            let syntax = syn::parse_file(&std::fs::read_to_string(&file).unwrap()).unwrap();
            let mut constants = Constants::default();
            constants.visit_file(&syntax);
            let module = module_of(name, &file, &source);
            for limit in constants.0.keys().filter(|limit| limit.starts_with("MAX_")) {
                let path = format!("{module}::{limit}");
                if !INTERNAL.contains(&path.as_str()) && !text.contains(&format!("`{path}`")) {
                    missing.push(path);
                }
            }
        }
    }
    assert!(
        missing.is_empty(),
        "add a row for each of these to a table of docs/security.md, or to INTERNAL:\n{}",
        missing.join("\n")
    );
}

#[test]
fn constants_and_numbers_are_read() {
    assert_eq!(number("4 MiB"), Some(4_194_304.0));
    assert_eq!(number("10,000"), Some(10_000.0));
    assert_eq!(number("100ms"), Some(0.1));
    assert_eq!(number("none"), None);
    assert_eq!(constant("server::settings::MAX_BODY"), Some(4_194_304.0));
    assert_eq!(constant("server::settings::NOTHING"), None);
}
