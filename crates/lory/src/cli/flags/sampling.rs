//! The flags of sampling parameters, from the table in [`sampling`].

use clap::{Arg, ArgMatches, Command, value_parser};
use sampling::{Kind, PARAMETERS, SamplingParams, Value};

/// The parameters that the flags set.
#[derive(Debug)]
pub(crate) struct SamplingFlags(pub SamplingParams);

impl clap::Args for SamplingFlags {
    fn augment_args(mut command: Command) -> Command {
        for parameter in &PARAMETERS {
            let Some(flag) = parameter.flag else { continue };
            let arg = Arg::new(parameter.name)
                .long(flag.long)
                .value_name(flag.value_name)
                .help(flag.help);
            command = command.arg(match parameter.kind {
                Kind::Float(_) => arg.value_parser(value_parser!(f32)),
                Kind::Count => arg.value_parser(value_parser!(usize)),
                Kind::Seed => arg.value_parser(value_parser!(u64)),
            });
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        SamplingFlags::augment_args(command)
    }
}

impl clap::FromArgMatches for SamplingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = SamplingFlags(SamplingParams::default());
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for parameter in PARAMETERS
            .iter()
            .filter(|parameter| parameter.flag.is_some())
        {
            let name = parameter.name;
            let value = match parameter.kind {
                Kind::Float(_) => matches.get_one(name).copied().map(Value::Float),
                Kind::Count => matches.get_one(name).copied().map(Value::Count),
                Kind::Seed => matches.get_one(name).copied().map(Value::Seed),
            };
            if let Some(value) = value {
                self.0.set(name, value);
            }
        }
        Ok(())
    }
}
