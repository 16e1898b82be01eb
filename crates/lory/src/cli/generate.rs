//! `lory generate`: sends one prompt to one or more personas.

use formats::decimal::shortest;
use serde_json::json;

use crate::cli::exit::{ExitStatus, UsageError};
use crate::cli::flags::base::{BaseArgs, DeviceArgs, PrecisionArgs};
use crate::cli::flags::personas::{AdapterArgs, PersonasArgs};
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::flags::sampling::SamplingFlags;
use crate::cli::flags::variables::variable;
use crate::cli::output::print;
use crate::cli::output::side_by_side::{side_by_side, terminal_width};
use service::{
    Answer, AnswerBuilder, Conversation, FieldNames, GenerateRequest, RequestError, Service,
    TextEvent, TextStream,
};

/// Send a prompt to one persona, or to several at once
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A persona is a name (customer), a version of one (customer@3), or a blend (customer*0.7+partner*0.3).
The default is the base without an adapter.

Examples:
  lory generate --persona customer \"Where is order #12345?\"
  lory generate --adapter pirate \"Where is order #12345?\"
  lory generate --persona customer --persona partner --json \"Where is order #12345?\"")]
pub(crate) struct Args {
    /// The persona that answers; may be given several times, for several answers in one batch
    #[arg(long = "persona", value_name = "NAME")]
    personas: Vec<String>,
    /// Data that the prompt is about, such as an order's record
    #[arg(long, value_name = "TEXT", default_value = "")]
    input: String,
    /// The value of a variable in the persona's system prompt; may be given several times
    #[arg(long = "variable", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
    /// Maximum number of new tokens [default: the persona's]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Print one JSON object for each persona, each on a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    personas_dir: PersonasArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The prompt
    prompt: String,
}

/// The names of the fields in error messages.
const NAMES: FieldNames = FieldNames {
    persona: "--persona",
    prompt: "the prompt",
    max_new_tokens: "--max-new-tokens",
};

impl Args {
    fn request(&self, persona: Option<&str>) -> GenerateRequest {
        GenerateRequest {
            conversation: Conversation::Prompt {
                prompt: self.prompt.clone(),
                input: self.input.clone(),
            },
            variables: self.variables.iter().cloned().collect(),
            sampling: self.sampling.0,
            max_new_tokens: self.max_new_tokens,
            names: NAMES,
            ..GenerateRequest::new(persona, &self.prompt)
        }
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitStatus> {
    for spec in &args.personas {
        registry::spec::parse(spec)
            .map_err(|error| UsageError(format!("--persona {spec}: {error}")))?;
    }
    let adapters = args.adapters.open()?;
    let mut personas = args.personas.clone();
    if personas.is_empty() {
        personas.extend(adapters.iter().map(|adapter| adapter.name.clone()));
    }
    // The base and adapters need no folder of personas.
    let catalog = if args.personas.is_empty() && args.personas_dir.dir.is_none() {
        registry::Personas::new(adapters).into()
    } else {
        args.registry.catalog_with(&args.personas_dir, adapters)?
    };
    let located = args.base.locate()?;
    let settings = located.settings(&args.precision, &args.device)?;
    let service = Service::open(&located.path, catalog, &settings)?;
    match personas.as_slice() {
        [] if !args.json => stream(&service, &args.request(None))?,
        [persona] if !args.json => stream(&service, &args.request(Some(persona)))?,
        [] => print(&format!(
            "{}\n",
            as_json(&service.generate(&args.request(None))?)
        ))?,
        several => {
            let requests: Vec<GenerateRequest> = several
                .iter()
                .map(|persona| args.request(Some(persona)))
                .collect();
            let answers = generate_all(&service, &requests)?;
            let (mut answered, mut failed) = (Vec::new(), Vec::new());
            for (persona, answer) in several.iter().zip(answers) {
                match answer {
                    Ok(answer) => answered.push((persona.clone(), answer)),
                    // The adapter of one persona is broken, and the others can answer.
                    Err(error @ RequestError::Adapter { .. }) => failed.push((persona, error)),
                    Err(error) => return Err(usage_error(error)),
                }
            }
            if answered.is_empty()
                && let Some((_, error)) = failed.pop()
            {
                return Err(error.into());
            }
            if args.json {
                let lines = answered
                    .iter()
                    .map(|(_, answer)| format!("{}\n", as_json(answer)));
                print(&lines.collect::<String>())?;
            } else {
                let texts = answered
                    .into_iter()
                    .map(|(persona, answer)| (persona, answer.text));
                print(&side_by_side(&texts.collect::<Vec<_>>(), terminal_width()))?;
            }
            for (persona, error) in &failed {
                eprintln!("persona {persona} did not answer: {error}");
            }
            if !failed.is_empty() {
                service.engine().shutdown();
                return Ok(ExitStatus::Failure);
            }
        }
    }
    service.engine().shutdown();
    Ok(ExitStatus::Success)
}

/// Sends all requests at once, so that they run in one batch, and waits for all answers. A request that is refused does not keep the others from
/// being answered.
pub(crate) fn generate_all(
    service: &Service,
    requests: &[GenerateRequest],
) -> anyhow::Result<Vec<Result<Answer, RequestError>>> {
    let streams: Vec<_> = requests
        .iter()
        .map(|request| service.stream(request))
        .collect();
    streams
        .into_iter()
        .map(|stream| match stream {
            Ok(stream) => collect(stream, |_| Ok(())).map(Ok),
            Err(error) => Ok(Err(error)),
        })
        .collect()
}

/// A value out of range is an error of the command line; an unknown persona is not.
fn usage_error(error: RequestError) -> anyhow::Error {
    match error {
        RequestError::Persona { .. } => error.into(),
        error if error.field().is_some() => UsageError(error.to_string()).into(),
        error => error.into(),
    }
}

fn stream(service: &Service, request: &GenerateRequest) -> anyhow::Result<()> {
    collect(service.stream(request).map_err(usage_error)?, print)?;
    print("\n")
}

/// Waits for an answer and calls `show` with each piece of its text.
fn collect(
    mut stream: TextStream,
    mut show: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let mut answer = AnswerBuilder::default();
    for event in &mut stream {
        match event {
            TextEvent::Delta(delta) => {
                show(&delta.text)?;
                answer.push(delta);
            }
            TextEvent::ToolCall(call) => answer.push_call(call),
            TextEvent::End(end) => {
                return Ok(answer.finish(stream.identity.clone(), end)?);
            }
        }
    }
    anyhow::bail!("the engine stopped before the answer was complete")
}

/// An answer in the format of `POST /generate`.
fn as_json(answer: &Answer) -> serde_json::Value {
    let adapters: Vec<_> = answer
        .identity
        .adapters
        .iter()
        .map(|adapter| json!({"sha256": adapter.id.to_string(), "scale": shortest(adapter.scale)}))
        .collect();
    let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    json!({
        "response": answer.text,
        "persona": {"name": answer.identity.name, "version": answer.identity.version, "adapters": adapters},
        "finish_reason": answer.end.reason.name(),
        "usage": {"prompt_tokens": answer.end.prompt_tokens, "completion_tokens": answer.end.completion_tokens},
        "timings": {
            "queue_ms": ms(answer.end.timings.queue),
            "first_token_ms": answer.end.timings.first_token.map(ms),
            "total_ms": ms(answer.end.timings.total),
        },
    })
}
