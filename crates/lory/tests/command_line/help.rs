//! Snapshots of every `--help`. After a change of words: `INSTA_UPDATE=always cargo test -p lory --test command_line help`.

use crate::test_dir::TestDir;

/// The subcommands that a help text lists, without `help` itself.
fn subcommands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let list = list.take_while(|line| !line.trim().is_empty());
    // A name has an indent of two; the lines that continue its description have more.
    let names = list.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names = names.filter(|name| !name.is_empty() && *name != "help");
    names.map(str::to_owned).collect()
}

#[test]
fn every_help_text_is_as_recorded() {
    let dir = TestDir::new();
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _bound = settings.bind_to_scope();
    // `man` is hidden, so no help text lists it.
    let mut open = vec![Vec::new(), vec!["man".to_owned()]];
    let mut seen = 0;
    while let Some(command) = open.pop() {
        let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
        args.push("--help");
        let mut lory = dir.lory(&args);
        let ran = crate::test_dir::ran(lory.env("COLUMNS", "110").output().unwrap());
        let help = ran.succeeds();
        for name in subcommands(help) {
            open.push([command.clone(), vec![name]].concat());
        }
        let name = [vec!["help".to_owned()], command].concat().join("-");
        insta::assert_snapshot!(name, help);
        seen += 1;
    }
    assert!(seen > 25, "{seen}");
}
