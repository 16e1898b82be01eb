//! The types of a row of the table, and the macro that makes the table and its two structs of the rows.

/// One parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    /// Its name in JSON and TOML.
    pub name: &'static str,
    /// Its type and range.
    pub kind: Kind,
    /// One sentence for users of the API.
    pub help: &'static str,
    /// The interfaces that accept it.
    pub interfaces: &'static [Interface],
    /// Its flag of `lory generate`, if it has one.
    pub flag: Option<CommandLineFlag>,
}

/// The type and range of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A number in a range.
    Float(Range),
    /// A whole number from 0.
    Count,
    /// 64 bits; the OpenAI endpoints read them as a signed number.
    Seed,
}

/// A range of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// The lower bound.
    pub low: f32,
    /// Whether the lower bound is in the range.
    pub includes_low: bool,
    /// The upper bound, which is in the range.
    pub high: f32,
}

/// An interface that reads parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// `POST /v1/chat/completions` and `POST /v1/completions`.
    OpenAi,
    /// `POST /generate`.
    Generate,
    /// `persona.toml` and the settings of a published version.
    Persona,
}

/// A flag of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandLineFlag {
    /// Its name, without the dashes.
    pub long: &'static str,
    /// The name of its value.
    pub value_name: &'static str,
    /// Its help text.
    pub help: &'static str,
}

/// A value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// Of [`Kind::Float`].
    Float(f32),
    /// Of [`Kind::Count`].
    Count(usize),
    /// Of [`Kind::Seed`].
    Seed(u64),
}

/// A parameter is out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{parameter} {message}")]
pub struct SamplingError {
    /// The parameter's name.
    pub parameter: &'static str,
    /// What it must be, and what it is.
    pub message: String,
}

impl SamplingError {
    pub(crate) fn new(parameter: &'static str, message: String) -> SamplingError {
        SamplingError { parameter, message }
    }
}

impl Range {
    /// From `low` to `high`, both included.
    #[must_use]
    pub const fn closed(low: f32, high: f32) -> Range {
        Range {
            low,
            includes_low: true,
            high,
        }
    }

    /// Above `low`, to `high`.
    #[must_use]
    pub const fn above(low: f32, high: f32) -> Range {
        Range {
            low,
            includes_low: false,
            high,
        }
    }

    /// Checks a value of the parameter `name`.
    pub(crate) fn check(&self, name: &'static str, value: f32) -> Result<(), SamplingError> {
        let Range {
            low,
            includes_low,
            high,
        } = *self;
        let above = if includes_low {
            value >= low
        } else {
            value > low
        };
        if above && value <= high {
            return Ok(());
        }
        let message = match includes_low {
            true => format!("must be from {low} to {high}, not {value}"),
            false => format!("must be above {low} and at most {high}, not {value}"),
        };
        Err(SamplingError::new(name, message))
    }
}

impl Interface {
    /// The parameters that it accepts, in the table's order.
    pub fn parameters(self) -> impl Iterator<Item = &'static Parameter> {
        let all = crate::PARAMETERS.iter();
        all.filter(move |parameter| parameter.interfaces.contains(&self))
    }

    /// The parameter of this name, if it accepts it.
    #[must_use]
    pub fn parameter(self, name: &str) -> Option<&'static Parameter> {
        self.parameters().find(|parameter| parameter.name == name)
    }
}

/// The type of a parameter that is set.
macro_rules! plain {
    (Float) => {
        f32
    };
    (Count) => {
        usize
    };
    (Seed) => {
        u64
    };
}

/// The type of a parameter in [`crate::Sampling`].
macro_rules! resolved {
    (Float) => { f32 };
    (Count) => { usize };
    (Seed) => { Option<u64> };
}

macro_rules! resolve {
    (Seed, $set:expr, $neutral:expr) => {
        $set.or($neutral)
    };
    ($kind:ident, $set:expr, $neutral:expr) => {
        $set.unwrap_or($neutral)
    };
}

macro_rules! set {
    (Seed, $resolved:expr) => {
        $resolved
    };
    ($kind:ident, $resolved:expr) => {
        Some($resolved)
    };
}

macro_rules! flag {
    (no_flag()) => {
        None
    };
    (flag($long:literal, $value_name:literal, $help:literal)) => {
        Some($crate::CommandLineFlag {
            long: $long,
            value_name: $value_name,
            help: $help,
        })
    };
}

/// Makes [`crate::PARAMETERS`], [`crate::SamplingParams`] and [`crate::Sampling`] of the rows.
macro_rules! parameters {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident: $kind:ident($($range:expr)?) = $neutral:expr, [$($interface:ident),+], $flag:ident $flag_parts:tt, $help:literal;
    )+) => {
        const COUNT: usize = [$(stringify!($name)),+].len();

        /// Every parameter.
        pub static PARAMETERS: [Parameter; COUNT] = [$(
            Parameter {
                name: stringify!($name),
                kind: Kind::$kind$(($range))?,
                help: $help,
                interfaces: &[$($interface),+],
                flag: flag!($flag $flag_parts),
            }
        ),+];

        /// The parameters that a request or a persona sets; `None` leaves one to the next in line.
        #[derive(Debug, Clone, Copy, PartialEq, Default)]
        pub struct SamplingParams {
            $($(#[doc = $doc])+ pub $name: Option<plain!($kind)>,)+
        }

        /// The sampling parameters of one request, all of them set. A parameter at its neutral value costs no time.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Sampling {
            $($(#[doc = $doc])+ pub $name: resolved!($kind),)+
            /// Added to the logits of these tokens, each at most once in the list; at most [`MAX_LOGIT_BIAS`] of them, each from
            /// -100 to 100. Neutral when empty.
            pub logit_bias: Vec<(u32, f32)>,
        }

        impl Default for Sampling {
            /// The model's own distribution: every parameter neutral.
            fn default() -> Self {
                SamplingParams::default().resolve()
            }
        }

        impl Sampling {
            fn params(&self) -> SamplingParams {
                SamplingParams { $($name: set!($kind, self.$name)),+ }
            }
        }

        impl SamplingParams {
            /// These parameters, and those of `fallback` that are not set here.
            #[must_use]
            pub fn or(self, fallback: SamplingParams) -> SamplingParams {
                SamplingParams { $($name: self.$name.or(fallback.$name)),+ }
            }

            /// The neutral value for every parameter that is not set.
            #[must_use]
            pub fn resolve(self) -> Sampling {
                Sampling {
                    $($name: resolve!($kind, self.$name, $neutral),)+
                    logit_bias: Vec::new(),
                }
            }

            /// Sets the parameter `name`; false, and nothing is set, if there is none of this name and type.
            pub fn set(&mut self, name: &str, value: Value) -> bool {
                match (name, value) {
                    $((stringify!($name), Value::$kind(value)) => self.$name = Some(value),)+
                    _ => return false,
                }
                true
            }

            fn values(&self) -> [Option<Value>; COUNT] {
                [$(self.$name.map(Value::$kind)),+]
            }
        }
    };
}
