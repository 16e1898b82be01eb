//! The state of a conversation: its turns, and who answers the next one. Knows nothing of the service or the terminal.

use formats::chat_template::Message;
use serde_json::{Value, json};

/// How answers are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct AnswerSettings {
    /// The persona, as requests name it; none for the base alone.
    pub persona: Option<String>,
    /// A system text that replaces the persona's system prompt.
    pub system: Option<String>,
}

/// A message and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exchange {
    question: String,
    answer: String,
    /// The answer was stopped or reached a limit.
    cut: bool,
    /// What answered.
    settings: AnswerSettings,
    /// How often these settings had answered the question before.
    draw: u64,
}

/// A message to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// The message.
    pub text: String,
    /// How often the present settings have answered it before.
    pub draw: u64,
    /// Its answer replaces the last one.
    pub again: bool,
}

impl Question {
    /// A new message.
    pub fn new(text: String) -> Question {
        Question {
            text,
            draw: 0,
            again: false,
        }
    }
}

/// The conversation so far.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// How the next answer is made.
    pub settings: AnswerSettings,
    exchanges: Vec<Exchange>,
}

impl Conversation {
    /// The last message, to answer it again with the present settings; none before the first.
    pub fn last_question(&self) -> Option<Question> {
        let last = self.exchanges.last()?;
        let draw = match last.settings == self.settings {
            true => last.draw + 1,
            false => 0,
        };
        Some(Question {
            text: last.question.clone(),
            draw,
            again: true,
        })
    }

    /// The messages of a request that asks `question`.
    pub fn messages(&self, question: &Question) -> Vec<Message> {
        let earlier = self.exchanges.len() - usize::from(question.again);
        let system = self.settings.system.iter();
        let mut messages: Vec<Message> = system.map(|text| Message::new("system", text)).collect();
        for exchange in &self.exchanges[..earlier] {
            messages.push(Message::new("user", &exchange.question));
            messages.push(Message::new("assistant", &exchange.answer));
        }
        messages.push(Message::new("user", &question.text));
        messages
    }

    /// Adds an answer; `cut` if it was stopped or reached a limit.
    pub fn answered(&mut self, question: Question, answer: String, cut: bool) {
        if question.again {
            self.exchanges.pop();
        }
        self.exchanges.push(Exchange {
            question: question.text,
            answer,
            cut,
            settings: self.settings.clone(),
            draw: question.draw,
        });
    }

    /// Removes the last message and its answer. Returns the message.
    pub fn undo(&mut self) -> Option<String> {
        self.exchanges.pop().map(|exchange| exchange.question)
    }

    /// Removes all messages. Returns how many there were.
    pub fn clear(&mut self) -> usize {
        self.exchanges.drain(..).count()
    }

    /// How many messages have an answer.
    pub fn len(&self) -> usize {
        self.exchanges.len()
    }

    /// How many answers are cut off or empty: nothing to learn from.
    pub fn cut(&self) -> usize {
        let cut = self
            .exchanges
            .iter()
            .filter(|exchange| !exchange.is_whole());
        cut.count()
    }

    /// The conversation as a training row (`docs/data.md`). Answers that are cut off have the weight 0, so they are context only. The
    /// row has the system text that was set here; training adds a persona's own.
    pub fn row(&self) -> Value {
        let system = self.settings.system.iter();
        let mut messages: Vec<Value> = system
            .map(|text| json!({"role": "system", "content": text}))
            .collect();
        for exchange in &self.exchanges {
            messages.push(json!({"role": "user", "content": exchange.question}));
            let mut answer = json!({"role": "assistant", "content": exchange.answer});
            if !exchange.is_whole() {
                answer["weight"] = json!(0);
            }
            messages.push(answer);
        }
        json!({ "messages": messages })
    }
}

impl Exchange {
    fn is_whole(&self) -> bool {
        !self.cut && !self.answer.trim().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(conversation: &mut Conversation, question: &str, answer: &str) {
        let question = Question::new(question.to_owned());
        conversation.answered(question, answer.to_owned(), false);
    }

    fn texts(messages: &[Message]) -> Vec<String> {
        let text = |message: &Message| format!("{}: {}", message.role, message.content);
        messages.iter().map(text).collect()
    }

    #[test]
    fn a_request_has_the_system_text_and_all_turns() {
        let mut conversation = Conversation::default();
        say(&mut conversation, "Hi", "Hello!");
        conversation.settings.system = Some("Be brief.".to_owned());
        let messages = conversation.messages(&Question::new("And now?".to_owned()));
        assert_eq!(
            texts(&messages),
            [
                "system: Be brief.",
                "user: Hi",
                "assistant: Hello!",
                "user: And now?"
            ]
        );
    }

    #[test]
    fn an_answer_to_the_last_message_replaces_the_last_one() {
        let mut conversation = Conversation::default();
        assert_eq!(conversation.last_question(), None);
        say(&mut conversation, "Hi", "Hello!");
        let again = conversation.last_question().unwrap();
        assert_eq!(texts(&conversation.messages(&again)), ["user: Hi"]);
        // Until there is an answer, the old one stays.
        assert_eq!(conversation.len(), 1);
        conversation.answered(again, "Hey!".to_owned(), false);
        assert_eq!(
            conversation.row(),
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hey!"}]})
        );
    }

    #[test]
    fn draws_are_counted_until_the_settings_change() {
        let mut conversation = Conversation::default();
        say(&mut conversation, "Hi", "Hello!");
        for draw in [1, 2] {
            let again = conversation.last_question().unwrap();
            assert_eq!(again.draw, draw);
            conversation.answered(again, "Hey!".to_owned(), false);
        }
        conversation.settings.persona = Some("partner".to_owned());
        assert_eq!(conversation.last_question().unwrap().draw, 0);
    }

    #[test]
    fn undo_and_clear_remove_messages() {
        let mut conversation = Conversation::default();
        assert_eq!(conversation.undo(), None);
        say(&mut conversation, "one", "1");
        say(&mut conversation, "two", "2");
        assert_eq!(conversation.undo().as_deref(), Some("two"));
        assert_eq!((conversation.clear(), conversation.len()), (1, 0));
    }

    #[test]
    fn cut_and_empty_answers_have_no_weight_in_a_row() {
        let mut conversation = Conversation::default();
        conversation.settings.system = Some("Be brief.".to_owned());
        conversation.answered(Question::new("a".to_owned()), "Well, th".to_owned(), true);
        say(&mut conversation, "b", " ");
        say(&mut conversation, "c", "Yes.");
        assert_eq!(conversation.cut(), 2);
        let row = conversation.row();
        let weights: Vec<&Value> = [2, 4, 6]
            .iter()
            .map(|index| &row["messages"][index]["weight"])
            .collect();
        assert_eq!(weights, [&json!(0), &json!(0), &Value::Null]);
        assert_eq!(row["messages"][0]["role"], "system");
    }
}
