//! Modules of a crate do not use each other in a cycle.
//!
//! Siblings are compared at every level: `a/x.rs` using an item that `b/y.rs` defines is `a -> b` at the crate's root. A re-export
//! counts for the module that defines the item, so a facade in `lib.rs` or `mod.rs` makes no cycle. Modules within one file count
//! as the file.
//!
//! A folder's `mod.rs` takes part as well, under the name `mod`, with the items that it defines and the code that it has; declaring
//! and re-exporting children is not a use. So a type that all children share may be in `mod.rs` as long as the code there does not
//! use the children; else one of the two moves into a file of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::modules::{Crate, ModulePath, Use};
use crate::{report, sources};

/// Folders whose modules still use each other in a cycle, by crate and module path. The list may only shrink.
const SIBLINGS: &[(&str, &str)] = &[];
/// Folders whose `mod.rs` still uses children that use it.
const PARENTS: &[(&str, &str)] = &[];

/// The node of a folder's own file.
const OWN: &str = "mod";

/// The uses between the modules of one folder, by user and used.
type Level = BTreeMap<String, BTreeMap<String, Vec<Use>>>;

/// The uses of a crate by folder.
fn levels(found: &Crate) -> BTreeMap<ModulePath, Level> {
    let mut levels: BTreeMap<ModulePath, Level> = BTreeMap::new();
    for one in &found.uses {
        let (from, to) = (found.file_of(&one.from), found.file_of(&one.to));
        let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        let node = |path: &[String]| path.get(common).cloned().unwrap_or(OWN.to_owned());
        let (user, used) = (node(from), node(to));
        if user == used || user == OWN && one.reexport {
            continue;
        }
        let level = levels.entry(from[..common].to_vec()).or_default();
        let of_user = level.entry(user).or_default();
        of_user.entry(used).or_default().push(one.clone());
    }
    levels
}

/// The shortest way along the uses from `start` back to it.
fn cycle<'a>(level: &'a Level, start: &'a str) -> Option<Vec<&'a str>> {
    let mut ways = vec![vec![start]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for to in level
                .get(way[way.len() - 1])
                .into_iter()
                .flat_map(BTreeMap::keys)
            {
                if to == start {
                    return Some(way);
                }
                if seen.insert(to.as_str()) {
                    longer.push(way.iter().copied().chain([to.as_str()]).collect());
                }
            }
        }
        ways = longer;
    }
    None
}

/// The shortest cycle of each module, if it has the module `through`, with the places of its uses; empty if there are none.
fn describe(folder: &str, level: &Level, through: Option<&str>) -> String {
    let mut cycles: BTreeSet<Vec<&str>> = BTreeSet::new();
    for start in level.keys() {
        if let Some(mut cycle) = cycle(level, start) {
            // Each cycle once: from the name that is first in the alphabet.
            let first = (0..cycle.len()).min_by_key(|i| cycle[*i]).unwrap_or(0);
            cycle.rotate_left(first);
            if through.is_none_or(|name| cycle.contains(&name)) {
                cycles.insert(cycle);
            }
        }
    }
    let mut text = String::new();
    for cycle in cycles {
        let _ = writeln!(text, "{folder}: {} -> {}", cycle.join(" -> "), cycle[0]);
        for (i, user) in cycle.iter().enumerate() {
            let used = cycle[(i + 1) % cycle.len()];
            for one in &level[*user][used] {
                let _ = writeln!(text, "    {user} -> {used}  {}: {}", one.at, one.text);
            }
        }
    }
    text
}

/// A folder without its own file.
fn siblings(level: &Level) -> Level {
    let mut level = level.clone();
    level.remove(OWN);
    level.values_mut().for_each(|used| drop(used.remove(OWN)));
    level
}

/// Checks every folder of every crate; the cycles by crate, and what is wrong.
fn check(
    cycles_of: impl Fn(&str, &Level) -> String,
    known: &[(&str, &str)],
) -> (BTreeMap<String, String>, Vec<String>) {
    let (mut all, mut wrong) = (BTreeMap::new(), Vec::new());
    let mut unused: BTreeSet<&(&str, &str)> = known.iter().collect();
    for (name, found) in sources() {
        let text: &mut String = all.entry(name.clone()).or_default();
        for (path, level) in levels(found) {
            let path = path.join("::");
            let cycles = cycles_of(&format!("{name} {path}"), &level);
            match known.iter().find(|entry| **entry == (name, &path)) {
                _ if cycles.is_empty() => {}
                Some(entry) => drop(unused.remove(entry)),
                None => wrong.push(format!("{cycles}    (\"{name}\", \"{path}\")")),
            }
            *text += &cycles;
        }
    }
    let stale = unused
        .iter()
        .map(|entry| format!("{entry:?} has no cycle any more: take it out of the list"));
    wrong.extend(stale);
    (all, wrong)
}

#[test]
fn sibling_modules_do_not_use_each_other_in_a_cycle() {
    let cycles_of = |folder: &str, level: &Level| describe(folder, &siblings(level), None);
    let (all, wrong) = check(cycles_of, SIBLINGS);
    for (name, text) in all {
        report(&format!("cycles-{name}.txt"), &text);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_folder_does_not_use_children_that_use_it() {
    let cycles_of = |folder: &str, level: &Level| describe(folder, level, Some(OWN));
    let (all, wrong) = check(cycles_of, PARENTS);
    for (name, text) in all {
        report(&format!("cycles-with-mod-{name}.txt"), &text);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
