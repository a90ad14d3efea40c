//! Trained runs, opened to answer with: several of them on one frozen model, their rows in one batch.

use std::path::Path;
use std::sync::Mutex;

use super::setup::{mixture, prompt_names, sources_of};
use super::task_data::longest_target;
use super::{RunFolder, tasks};
use crate::backend::Backend;
use crate::config::{Decoding, RunConfig};
use crate::data::tokenise;
use crate::error::{Error, Result};
use crate::evaluate::{Answer, Answering, Question, Spellings, answer};
use crate::model::{Frozen, Mixture};
use crate::tasks::{Row, Task};

/// Examples of a batch: forward alone keeps little.
const BATCH: usize = 64;

/// A text for one of a predictor's runs to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// The run, counted from 0 in the order in which they were opened.
    pub run: usize,
    /// The run's task, counted from 0.
    pub task: usize,
    /// What the encoder reads, as the run's task writes it; longer than the run's limit, it is cut as in training.
    pub text: String,
}

impl Request {
    /// `text` for the first task of `run`.
    pub fn new(run: usize, text: impl Into<String>) -> Self {
        Self { run, task: 0, text: text.into() }
    }
}

/// What a run answered.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// The answer.
    pub answer: String,
    /// The mixture's weights, in the order of [`Predictor::prompts`]; empty without a scorer.
    pub attention: Vec<f64>,
    /// The tokens that the source had, where it was truncated.
    pub truncated_from: Option<usize>,
}

/// Runs on one frozen model. Those of one layout, mixture and sources share a batch.
pub struct Predictor<'a, B: Backend> {
    frozen: &'a Frozen<'a, B>,
    runs: Vec<OpenedRun>,
    stacks: Vec<Stack<B>>,
}

struct OpenedRun {
    config: RunConfig,
    /// In the order of their target prompts.
    tasks: Vec<OpenedTask>,
    prompts: Vec<String>,
    stack: usize,
    /// Which run of the stack it is.
    place: usize,
}

struct OpenedTask {
    task: Task,
    longest_target: usize,
    /// Label texts and their tokens, where they are ranked.
    labels: Option<(Vec<String>, Vec<Vec<u32>>)>,
    spellings: Spellings,
}

/// States of runs that one mixture serves.
struct Stack<B: Backend> {
    mixture: Mixture<B>,
    sources: Vec<f32>,
    pooled_width: Option<usize>,
    values: Vec<f64>,
    state: B::State,
    /// Of answers with this state; who finds it in use by another thread works without what it has.
    graph_cache: Mutex<B::GraphCache>,
}

impl<B: Backend> Stack<B> {
    fn answer(&self, frozen: &Frozen<'_, B>, questions: &[Question<'_>]) -> Result<Vec<Answer>> {
        let Self { mixture, state, pooled_width, .. } = self;
        let (mut own, mut shared) = (B::GraphCache::default(), self.graph_cache.try_lock());
        let graph_cache = shared.as_mut().map_or(&mut own, |shared| &mut **shared);
        answer(frozen, mixture, state, *pooled_width, graph_cache, questions)
    }
}

impl<'a, B: Backend> Predictor<'a, B> {
    /// Opens the best states of the runs in `folders`, which must have been trained with this model; `decoding` overrides
    /// how they get their answers.
    ///
    /// # Errors
    /// If a folder holds no run, its state is damaged, its sources are gone, or it was trained with another model; those of
    /// the device.
    pub fn open(frozen: &'a Frozen<'a, B>, folders: &[&Path], decoding: Option<Decoding>) -> Result<Self> {
        let mut predictor = Self { frozen, runs: Vec::new(), stacks: Vec::new() };
        for folder in folders {
            predictor.add(folder, decoding)?;
        }
        Ok(predictor)
    }

    fn add(&mut self, folder: &Path, decoding: Option<Decoding>) -> Result<()> {
        let frozen = self.frozen;
        let saved = RunFolder::saved(folder)?;
        saved.check_model(&frozen.model_hash, "--run")?;
        let config = saved.located(folder);
        let described = tasks(&config)?;
        let sources = sources_of(frozen, &saved, &config, "--run")?;
        let mixture = mixture(frozen, &config, &sources, described.len())?;
        let values = RunFolder::load_best(folder, &mixture.layout)?;
        let decoding = decoding.unwrap_or(config.decoding);
        let open = |task: Task| {
            let longest_target = longest_target(frozen, &config, &task)?;
            let spellings = Spellings::new(&frozen.tokenizer, &task)?;
            let texts = if decoding == Decoding::Labels { task.labels() } else { None };
            let labels = match texts {
                Some(texts) => {
                    let tokens = texts.iter().map(|text| frozen.tokenizer.encode(text));
                    let tokens = tokens.collect::<Result<Vec<_>>>()?;
                    Some((texts, tokens))
                }
                None => None,
            };
            Ok(OpenedTask { task, longest_target, labels, spellings })
        };
        let tasks = described.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        let prompts = prompt_names(&config, &mixture);
        let sources: Vec<f32> = sources.iter().flat_map(|source| source.values()).copied().collect();
        let pooled_width = config.pools_padding().then_some(config.max_source_length);
        let fits = |stack: &Stack<B>| {
            stack.mixture.mixing == mixture.mixing
                && stack.mixture.layout == mixture.layout
                && stack.sources == sources
                && stack.pooled_width == pooled_width
        };
        let stack = match self.stacks.iter().position(fits) {
            Some(stack) => stack,
            None => {
                let state = frozen.backend.state(&mixture.layout, &[], 0)?;
                let (values, graph_cache) = (Vec::new(), Mutex::default());
                self.stacks.push(Stack { mixture, sources, pooled_width, values, state, graph_cache });
                self.stacks.len() - 1
            }
        };
        let opened = &mut self.stacks[stack];
        let place = opened.values.len() / opened.mixture.layout.len().max(1);
        opened.values.extend(values);
        opened.state = frozen.backend.state(&opened.mixture.layout, &opened.values, place + 1)?;
        opened.graph_cache = Mutex::default();
        self.runs.push(OpenedRun { config, tasks, prompts, stack, place });
        Ok(())
    }

    /// What a run's weights belong to: its sources, then `target`.
    ///
    /// # Panics
    /// If there is no such run.
    pub fn prompts(&self, run: usize) -> &[String] {
        &self.runs[run].prompts
    }

    /// How many batches at least it takes to answer rows of all runs.
    pub fn stacks(&self) -> usize {
        self.stacks.len()
    }

    /// A row of data as a request to `run`. Of a run on several tasks, the row's field `task` names the one.
    ///
    /// # Errors
    /// If the row lacks a field that the run's task reads, or there is no such run or task.
    pub fn request(&self, run: usize, row: &Row) -> Result<Request> {
        self.request_as(run, None, row)
    }

    /// As [`request`](Self::request), taking `task` for a row that does not name one.
    ///
    /// # Errors
    /// As there.
    pub fn request_as(&self, run: usize, task: Option<&str>, row: &Row) -> Result<Request> {
        let tasks = &self.run(run)?.tasks;
        let named = row.fields().get("task").and_then(serde_json::Value::as_str).filter(|_| tasks.len() > 1);
        let index = match named.or(task) {
            None if tasks.len() == 1 => 0,
            wanted => {
                let found = tasks.iter().position(|opened| wanted == Some(opened.task.name.as_str()));
                found.ok_or_else(|| {
                    let names: Vec<&str> = tasks.iter().map(|opened| opened.task.name.as_str()).collect();
                    let expected = format!("a field `task` or --task with one of {}", names.join(", "));
                    let advice = "a run on several tasks answers with the prompt of one";
                    row.error(expected, wanted.unwrap_or("none"), advice)
                })?
            }
        };
        let text = tasks[index].task.source_text(row)?;
        Ok(Request { run, task: index, text })
    }

    fn run(&self, run: usize) -> Result<&OpenedRun> {
        let missing =
            || Error::setting("request", format!("a run below {}", self.runs.len()), run.to_string(), "");
        self.runs.get(run).ok_or_else(missing)
    }

    /// Answers all requests, in their order. Rows of runs that can share a batch do.
    ///
    /// # Errors
    /// If a request names no run, and those of tokenising, the device and decoding.
    pub fn predict(&self, requests: &[Request]) -> Result<Vec<Prediction>> {
        let mut predictions: Vec<Option<Prediction>> = vec![None; requests.len()];
        for request in requests {
            let tasks = self.run(request.run)?.tasks.len();
            if request.task >= tasks {
                let (expected, found) = (format!("a task below {tasks}"), request.task.to_string());
                return Err(Error::setting("request", expected, found, ""));
            }
        }
        for (index, stack) in self.stacks.iter().enumerate() {
            let mut own: Vec<usize> =
                (0..requests.len()).filter(|&place| self.runs[requests[place].run].stack == index).collect();
            // A batch is grouped by run; the answers go back to where their requests were.
            own.sort_by_key(|&place| self.runs[requests[place].run].place);
            for own in own.chunks(BATCH) {
                let asked =
                    own.iter().map(|&place| self.question(&requests[place])).collect::<Result<Vec<_>>>()?;
                let (questions, full): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
                let answers = stack.answer(self.frozen, &questions)?;
                for ((&place, answer), (question, full)) in
                    own.iter().zip(answers).zip(questions.iter().zip(full))
                {
                    let truncated_from = (full > question.source.len()).then_some(full);
                    let (answer, attention) = (answer.text, answer.attention);
                    predictions[place] = Some(Prediction { answer, attention, truncated_from });
                }
            }
        }
        Ok(predictions.into_iter().flatten().collect())
    }

    /// What is asked of a run, and the tokens that the source had before it was truncated.
    fn question(&self, request: &Request) -> Result<(Question<'_>, usize)> {
        let run = self.run(request.run)?;
        let tokenizer = &self.frozen.tokenizer;
        let encode = |text: &str| tokenizer.encode(text);
        let (source, full) = tokenise(&request.text, &encode, run.config.max_source_length)?;
        let task = &run.tasks[request.task];
        let answering = match &task.labels {
            Some((texts, tokens)) => Answering::Labels { texts, tokens },
            None => Answering::Greedy { longest: task.longest_target, spellings: &task.spellings },
        };
        let question =
            Question { source, run: run.place as u32, target_prompt: request.task as u32, answering };
        Ok((question, full))
    }
}
