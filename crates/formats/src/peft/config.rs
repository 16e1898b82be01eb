//! `adapter_config.json`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::error::PeftError;
use super::fields::AdapterFields;
use super::module::Module;
use super::patterns::{
    Expression, Layers, MAX_EXPRESSIONS, MatchBudget, PathPattern, TargetModules,
};

/// The configuration of an adapter: the fields that concern the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// The base that it was trained on, as PEFT names it.
    pub base_model_name_or_path: Option<String>,
    /// The revision of that base: a branch, a tag or a commit of its repository.
    pub revision: Option<String>,
    /// Rank of modules that no `rank_pattern` matches.
    pub r: usize,
    /// Alpha of modules that no `alpha_pattern` matches.
    pub lora_alpha: f64,
    /// Scale by alpha / sqrt(rank) instead of alpha / rank.
    pub use_rslora: bool,
    /// Dropout in training; it has no effect on inference.
    pub lora_dropout: f64,
    /// Which modules it targets.
    pub target_modules: TargetModules,
    /// Modules that are not targets, even if `target_modules` names them.
    pub exclude_modules: Option<TargetModules>,
    /// Ranks of single modules: the first pattern that matches a path wins.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of single modules: the first pattern that matches a path wins.
    pub alpha_pattern: Vec<(String, f64)>,
    /// The layers that a list of `target_modules` is narrowed to; empty for all.
    pub layers_to_transform: Vec<usize>,
    /// The names under which layers are numbered; empty for any. Only with `layers_to_transform`.
    pub layers_pattern: Vec<String>,
}

/// Most patterns in a map.
const MAX_PATTERNS: usize = 8192;

impl AdapterConfig {
    /// A configuration of one rank and alpha for these modules in all layers.
    pub fn new(r: usize, lora_alpha: f64, modules: &[Module]) -> AdapterConfig {
        let mut names: Vec<String> = modules
            .iter()
            .map(|module| module.name().to_owned())
            .collect();
        names.sort();
        names.dedup();
        AdapterConfig {
            base_model_name_or_path: None,
            revision: None,
            r,
            lora_alpha,
            use_rslora: false,
            lora_dropout: 0.0,
            target_modules: TargetModules::List(names),
            exclude_modules: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            layers_to_transform: Vec::new(),
            layers_pattern: Vec::new(),
        }
    }

    /// Parses the text of the file; `path` names it in messages.
    ///
    /// # Errors
    /// [`PeftError`]: not JSON, a field of the wrong type or range, or one that needs an unsupported feature.
    pub fn parse(text: &[u8], path: &Path) -> Result<AdapterConfig, PeftError> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let json: Value = serde_json::from_slice(text).map_err(|source| PeftError::Json {
            path: path.to_owned(),
            source,
        })?;
        let Value::Object(object) = json else {
            let problem = "the file must hold one JSON object".to_owned();
            return Err(PeftError::Field {
                path: path.to_owned(),
                field: "(whole file)".to_owned(),
                problem,
            });
        };
        let fields = AdapterFields {
            object: &object,
            path,
        };
        fields.refuse_unsupported()?;

        let config = AdapterConfig {
            base_model_name_or_path: fields.text("base_model_name_or_path")?,
            revision: fields.text("revision")?,
            r: fields.rank("r", fields.required("r")?)?,
            lora_alpha: fields.number("lora_alpha", fields.required("lora_alpha")?)?,
            use_rslora: match fields.get("use_rslora") {
                None => false,
                Some(Value::Bool(flag)) => *flag,
                Some(_) => {
                    return Err(fields.error("use_rslora", "must be true or false".to_owned()));
                }
            },
            lora_dropout: fields
                .get("lora_dropout")
                .and_then(Value::as_f64)
                .unwrap_or(0.0),
            target_modules: fields.target_modules()?,
            exclude_modules: fields.exclude_modules()?,
            rank_pattern: fields
                .patterns("rank_pattern", |name, value| fields.rank(name, value))?,
            alpha_pattern: fields
                .patterns("alpha_pattern", |name, value| fields.number(name, value))?,
            layers_to_transform: fields.layers_to_transform()?,
            layers_pattern: fields.layers_pattern()?,
        };
        config.matcher(path)?;
        Ok(config)
    }

    /// The text of the file, as PEFT writes it: keys sorted, for inference.
    pub fn to_json(&self) -> String {
        let or_null = |empty: bool, value: Value| if empty { Value::Null } else { value };
        let modules = |modules: &TargetModules| match modules {
            TargetModules::List(names) => {
                let mut names = names.clone();
                names.sort();
                json!(names)
            }
            TargetModules::Expression(expression) => json!(expression),
            TargetModules::AllLinear => json!("all-linear"),
        };
        let ranks: Map<String, Value> = self
            .rank_pattern
            .iter()
            .map(|(key, rank)| (key.clone(), json!(rank)))
            .collect();
        let alphas: Map<String, Value> = self
            .alpha_pattern
            .iter()
            .map(|(key, alpha)| (key.clone(), as_integer(*alpha)))
            .collect();
        let mut json = json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": or_null(self.layers_pattern.is_empty(), json!(self.layers_pattern)),
            "layers_to_transform": or_null(self.layers_to_transform.is_empty(), json!(self.layers_to_transform)),
            "lora_alpha": as_integer(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": ranks,
            "revision": self.revision,
            "target_modules": modules(&self.target_modules),
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        });
        if let Some(excluded) = &self.exclude_modules {
            json["exclude_modules"] = modules(excluded);
        }
        let mut text = format!("{json:#}");
        text.push('\n');
        text
    }

    /// Compiles the patterns; `path` names the file in messages.
    pub(super) fn matcher(&self, path: &Path) -> Result<Matcher, PeftError> {
        let error = |field: &str, problem: String| PeftError::Field {
            path: path.to_owned(),
            field: field.to_owned(),
            problem,
        };
        let narrowed = !self.layers_to_transform.is_empty();
        if narrowed && !matches!(self.target_modules, TargetModules::List(_)) {
            let problem = "only goes with a list of target_modules".to_owned();
            return Err(error("layers_to_transform", problem));
        }
        if !narrowed && !self.layers_pattern.is_empty() {
            return Err(error(
                "layers_pattern",
                "only goes with layers_to_transform".to_owned(),
            ));
        }
        let layers = narrowed
            .then(|| Layers::new(&self.layers_to_transform, &self.layers_pattern))
            .transpose()
            .map_err(|problem| error("layers_pattern", problem))?;
        let listed = |field: &str, names: &[String]| match names.len() {
            0 => Err(error(field, "names no module".to_owned())),
            1..=MAX_PATTERNS => Ok(names.to_vec()),
            count => {
                let problem = format!("{count} names; at most {MAX_PATTERNS} are read");
                Err(error(field, problem))
            }
        };
        let expression = |field: &str, pattern: &str| {
            let whole = Expression::new(pattern, &format!("^(?:{pattern})$"), 1);
            whole.map_err(|problem| error(field, problem))
        };
        let targets = match &self.target_modules {
            TargetModules::List(names) => {
                TargetMatcher::List(listed("target_modules", names)?, layers)
            }
            TargetModules::AllLinear => TargetMatcher::All,
            TargetModules::Expression(pattern) => {
                TargetMatcher::Expression(expression("target_modules", pattern)?)
            }
        };
        let excluded = match &self.exclude_modules {
            None => None,
            Some(TargetModules::List(names)) => {
                Some(TargetMatcher::List(listed("exclude_modules", names)?, None))
            }
            Some(TargetModules::Expression(pattern)) => Some(TargetMatcher::Expression(
                expression("exclude_modules", pattern)?,
            )),
            Some(TargetModules::AllLinear) => Some(TargetMatcher::All),
        };
        let matcher = Matcher {
            path: path.to_owned(),
            budget: MatchBudget::default(),
            targets,
            excluded,
            ranks: compile_all(&self.rank_pattern)
                .map_err(|problem| error("rank_pattern", problem))?,
            alphas: compile_all(&self.alpha_pattern)
                .map_err(|problem| error("alpha_pattern", problem))?,
            r: self.r,
            lora_alpha: self.lora_alpha,
            use_rslora: self.use_rslora,
        };
        for path in ["lm_head", "model.embed_tokens"] {
            if matcher.targets(&[path])? {
                let problem =
                    "LoRA on the embedding (embed_tokens) or the head (lm_head) is not supported";
                return Err(error("target_modules", problem.to_owned()));
            }
        }
        Ok(matcher)
    }
}

/// PEFT writes whole alphas as integers.
fn as_integer(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 9e15 {
        json!(number as i64)
    } else {
        json!(number)
    }
}

fn compile_all<T: Copy>(patterns: &[(String, T)]) -> Result<Vec<(PathPattern, T)>, String> {
    let keys = patterns.iter().map(|(key, _)| key.as_str());
    let expressions = keys.filter(|key| !PathPattern::is_plain(key)).count();
    if patterns.len() > MAX_PATTERNS || expressions > MAX_EXPRESSIONS {
        let total = patterns.len();
        return Err(format!(
            "{total} patterns, {expressions} of them expressions; at most {MAX_PATTERNS} and {MAX_EXPRESSIONS} are read"
        ));
    }
    let compile = |(key, value): &(String, T)| Ok((PathPattern::new(key, expressions)?, *value));
    patterns.iter().map(compile).collect()
}

enum TargetMatcher {
    List(Vec<String>, Option<Layers>),
    Expression(Expression),
    All,
}

impl TargetMatcher {
    fn matches(&self, path: &str, budget: &MatchBudget) -> Result<bool, String> {
        match self {
            TargetMatcher::All => Ok(Module::ALL
                .iter()
                .any(|module| path.ends_with(module.name()))),
            TargetMatcher::Expression(expression) => expression.is_match(path, budget),
            TargetMatcher::List(names, layers) => {
                // As in PEFT, a name that is the whole path matches in every layer.
                Ok(names.iter().any(|name| name == path)
                    || (names.iter().any(|name| {
                        path.strip_suffix(name.as_str())
                            .is_some_and(|rest| rest.ends_with('.'))
                    }) && layers.as_ref().is_none_or(|layers| layers.matches(path))))
            }
        }
    }
}

/// A configuration's patterns, compiled. A module is given by its paths: the one in this decoder, such as `model.layers.0.self_attn.q_proj`,
/// and the one in the model that was trained, if that differs. A pattern matches a module if it matches one of them.
pub(super) struct Matcher {
    /// The configuration's file, for messages.
    path: PathBuf,
    budget: MatchBudget,
    targets: TargetMatcher,
    excluded: Option<TargetMatcher>,
    ranks: Vec<(PathPattern, usize)>,
    alphas: Vec<(PathPattern, f64)>,
    r: usize,
    lora_alpha: f64,
    use_rslora: bool,
}

impl Matcher {
    /// Whether a module is a target.
    ///
    /// # Errors
    /// A pattern takes too long. The same for all methods.
    pub(super) fn targets(&self, paths: &[&str]) -> Result<bool, PeftError> {
        let any = |field: &str, matcher: &TargetMatcher| -> Result<bool, PeftError> {
            for path in paths {
                let matches = matcher.matches(path, &self.budget);
                if matches.map_err(|problem| self.error(field, problem))? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        if !any("target_modules", &self.targets)? {
            return Ok(false);
        }
        let excluded = self.excluded.as_ref();
        Ok(!excluded.map_or(Ok(false), |excluded| any("exclude_modules", excluded))?)
    }

    /// The rank of a module.
    pub(super) fn rank(&self, paths: &[&str]) -> Result<usize, PeftError> {
        let rank = self.first("rank_pattern", &self.ranks, paths)?;
        Ok(rank.unwrap_or(self.r))
    }

    /// The scale of a module of this rank: alpha / rank, or alpha / sqrt(rank).
    pub(super) fn scale(&self, paths: &[&str], rank: usize) -> Result<f32, PeftError> {
        let alpha = self.first("alpha_pattern", &self.alphas, paths)?;
        let (alpha, rank) = (alpha.unwrap_or(self.lora_alpha), rank as f64);
        Ok((alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32)
    }

    /// The value of the first pattern that matches.
    fn first<T: Copy>(
        &self,
        field: &str,
        patterns: &[(PathPattern, T)],
        paths: &[&str],
    ) -> Result<Option<T>, PeftError> {
        for (pattern, value) in patterns {
            for path in paths {
                let matches = pattern.matches(path, &self.budget);
                if matches.map_err(|problem| self.error(field, problem))? {
                    return Ok(Some(*value));
                }
            }
        }
        Ok(None)
    }

    fn error(&self, field: &str, problem: String) -> PeftError {
        PeftError::Field {
            path: self.path.clone(),
            field: field.to_owned(),
            problem,
        }
    }
}
