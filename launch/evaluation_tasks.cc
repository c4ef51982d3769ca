// SPDX-License-Identifier: Apache-2.0

#include "launch/evaluation_tasks.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

#include "launch/python_text.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"

namespace cubit {
namespace {

using Json = nlohmann::json;

constexpr char kDelimiter[] = " ";

// One context, and a continuation for every choice.
EvaluationItem Choose(const std::string& context,
                      const std::vector<std::string>& choices, int64_t gold) {
  EvaluationItem item;
  for (const std::string& choice : choices) {
    item.choices.push_back({context, absl::StrCat(kDelimiter, choice),
                            PythonLength(choice),
                            static_cast<int64_t>(choice.size())});
  }
  item.gold = gold;
  return item;
}

std::string QuestionContext(const std::string& question) {
  return absl::StrCat("Question: ", question, "\nAnswer:");
}

EvaluationItem ArcItem(JsonRow& row) {
  const std::string context = QuestionContext(row.String("question"));
  if (row.Has("gold")) {
    return Choose(context, row.Strings("choices"), row.Integer("gold"));
  }
  JsonRow choices = row.Object("choices");
  const std::vector<std::string> labels = choices.Strings("label");
  const std::vector<std::string> texts = choices.Strings("text");
  row.Absorb(choices);
  const std::string key = row.String("answerKey");
  const auto label = std::find(labels.begin(), labels.end(), key);
  if (label == labels.end()) {
    row.Fail(absl::StrCat("answerKey \"", key, "\" is none of choices.label"));
  }
  return Choose(context, texts, label - labels.begin());
}

// What the harness makes of a sentence of HellaSwag.
std::string CleanSentence(absl::string_view text) {
  std::string clean =
      absl::StrReplaceAll(PythonStrip(text), {{" [title]", ". "}});
  // "[...]", the shortest, within a line.
  for (size_t open = clean.find('['); open != std::string::npos;) {
    const size_t close = clean.find_first_of("]\n", open);
    if (close != std::string::npos && clean[close] == ']') {
      clean.erase(open, close - open + 1);
      open = clean.find('[', open);
    } else {
      open = clean.find('[', open + 1);
    }
  }
  return absl::StrReplaceAll(clean, {{"  ", " "}});
}

EvaluationItem HellaSwagItem(JsonRow& row) {
  // Rows that were cleaned before, or the data set's own.
  if (row.Has("query")) {
    return Choose(row.String("query"), row.Strings("choices"),
                  row.Integer("gold"));
  }
  const std::string context =
      absl::StrCat(row.String("activity_label"), ": ", row.String("ctx_a"), " ",
                   PythonCapitalize(row.String("ctx_b")));
  std::vector<std::string> endings = row.Strings("endings");
  for (std::string& ending : endings) ending = CleanSentence(ending);
  return Choose(CleanSentence(context), endings, row.Integer("label"));
}

EvaluationItem PiqaItem(JsonRow& row) {
  return Choose(QuestionContext(row.String("goal")),
                {row.String("sol1"), row.String("sol2")}, row.Integer("label"));
}

EvaluationItem SciqItem(JsonRow& row) {
  const std::string support = row.String("support");
  const std::string context = absl::StrCat(
      PythonStripLeft(support), "\n", QuestionContext(row.String("question")));
  return Choose(context,
                {row.String("distractor1"), row.String("distractor2"),
                 row.String("distractor3"), row.String("correct_answer")},
                3);
}

// Partial scoring: each option completes the sentence up to its gap, and what
// follows the gap is scored, the same text for both.
EvaluationItem WinograndeItem(JsonRow& row) {
  const std::string sentence = row.String("sentence");
  const size_t gap = sentence.find('_');
  EvaluationItem item;
  if (gap == std::string::npos) {
    row.Fail("\"sentence\" has no gap (\"_\")");
    return item;
  }
  const absl::string_view before = absl::string_view(sentence).substr(0, gap);
  const std::string rest = absl::StrCat(
      kDelimiter, PythonStrip(absl::string_view(sentence).substr(gap + 1)));
  for (const char* option : {"option1", "option2"}) {
    item.choices.push_back({absl::StrCat(before, row.String(option)), rest,
                            PythonLength(rest),
                            static_cast<int64_t>(rest.size())});
  }
  item.gold = row.Integer("answer") - 1;
  return item;
}

EvaluationItem SocialIqaItem(JsonRow& row) {
  const std::string context = absl::StrCat("Q: ", row.String("context"), " ",
                                           row.String("question"), "\nA:");
  return Choose(
      context,
      {row.String("answerA"), row.String("answerB"), row.String("answerC")},
      row.Integer("label") - 1);
}

// A question of RACE.
struct RaceProblem {
  std::string question;
  std::vector<std::string> options;
  int64_t answer = 0;
};

RaceProblem ReadRaceProblem(const Json& json, JsonRow& row) {
  constexpr absl::string_view kLetters = "ABCD";
  JsonRow fields(absl::StrCat(row.where(), ", a problem"),
                 json.is_object() ? json : Json::object());
  RaceProblem problem;
  problem.question = fields.String("question");
  problem.options = fields.Strings("options");
  const std::string letter = fields.String("answer");
  if (problem.options.size() != kLetters.size()) {
    fields.Fail(absl::StrCat("has ", problem.options.size(),
                             " options, wanted ", kLetters.size()));
  }
  const size_t answer =
      letter.size() == 1 ? kLetters.find(letter[0]) : std::string::npos;
  if (answer == std::string::npos) {
    fields.Fail(absl::StrCat("answer \"", letter, "\" is none of ", kLetters));
  }
  problem.answer = static_cast<int64_t>(answer);
  row.Absorb(fields);
  return problem;
}

// The problems of an article: a list, or as the data set has it, Python's text
// of one.
std::vector<RaceProblem> ReadRaceProblems(JsonRow& row) {
  Json list = row.Value("problems");
  if (list.is_string()) {
    const absl::StatusOr<Json> parsed =
        ParsePythonLiteral(list.get_ref<const std::string&>());
    if (!parsed.ok()) {
      row.Fail(absl::StrCat("\"problems\" is ", parsed.status().message()));
      return {};
    }
    list = *parsed;
  }
  if (!list.is_array() || list.empty()) {
    row.Fail("\"problems\" is no list of problems");
    return {};
  }
  std::vector<RaceProblem> problems;
  for (const Json& json : list) {
    problems.push_back(ReadRaceProblem(json, row));
  }
  return problems;
}

// The article and the questions before the last, with their answers; the last
// one is asked.
EvaluationItem RaceItem(JsonRow& row) {
  constexpr absl::string_view kGap = "  _  .";  // at the end of a question
  std::string context =
      absl::StrCat("Article: ", row.String("article"), "\n\n");
  const std::vector<RaceProblem> problems = ReadRaceProblems(row);
  if (!row.status().ok()) return EvaluationItem();
  for (size_t i = 0; i + 1 < problems.size(); ++i) {
    const std::string& question = problems[i].question;
    const std::string& answer =
        problems[i].options[static_cast<size_t>(problems[i].answer)];
    if (absl::EndsWith(question, kGap)) {
      // One of the spaces stays.
      absl::StrAppend(&context,
                      question.substr(0, question.size() - kGap.size() + 1),
                      answer, "\n");
    } else {
      absl::StrAppend(&context, "Question: ", question, "\nAnswer: ", answer,
                      "\n");
    }
  }
  context += problems.back().question;
  return Choose(context, problems.back().options, problems.back().answer);
}

}  // namespace

const std::vector<EvaluationTask>& EvaluationTasks() {
  static const auto* tasks = new std::vector<EvaluationTask>{
      {"arc_easy", {"arc_easy_test", "arc_easy"}, true, ArcItem},
      {"arc_challenge", {"arc_challenge_test", "arc_challenge"}, true, ArcItem},
      {"hellaswag",
       {"hellaswag_validation", "hellaswag_val", "hellaswag"},
       true,
       HellaSwagItem},
      {"piqa", {"piqa_validation", "piqa_valid", "piqa"}, true, PiqaItem},
      {"sciq", {"sciq_test", "sciq_validation", "sciq"}, true, SciqItem},
      {"winogrande",
       {"winogrande_xl_validation", "winogrande_validation", "winogrande"},
       false,
       WinograndeItem},
      {"social_iqa",
       {"social_iqa_validation", "siqa_validation", "social_iqa"},
       false,
       SocialIqaItem},
      {"race", {"race_high_test", "race_test", "race"}, false, RaceItem},
  };
  return *tasks;
}

absl::StatusOr<const EvaluationTask*> FindEvaluationTask(
    absl::string_view name) {
  std::vector<std::string> names;
  for (const EvaluationTask& task : EvaluationTasks()) {
    if (task.name == name) return &task;
    names.push_back(task.name);
  }
  const std::string nearest = NearestWord(name, names);
  return absl::InvalidArgumentError(absl::StrCat(
      "no task \"", name, "\"",
      nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"),
      " There are ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<std::string> FindTaskFile(const EvaluationTask& task,
                                         const std::string& folder) {
  std::vector<std::string> names;
  for (const std::string& file : task.files) {
    for (const char* suffix :
         {".jsonl", ".jsonl.xz", ".jsonl.gz", ".jsonl.zst"}) {
      const std::string path = JoinPath(folder, file + suffix);
      if (FileSystem::Posix().Exists(path)) return path;
    }
    names.push_back(file + ".jsonl");
  }
  return absl::NotFoundError(
      absl::StrCat(folder, ": has no file of task ", task.name, " (looked for ",
                   absl::StrJoin(names, ", "), ", plain or .xz, .gz, .zst); ",
                   "docs/evaluation.md says what goes into it"));
}

absl::StatusOr<std::vector<EvaluationItem>> ReadTaskItems(
    const EvaluationTask& task, const std::string& path, int64_t limit) {
  std::vector<EvaluationItem> items;
  const absl::Status read = ReadJsonRows(path, limit, [&](JsonRow& row) {
    EvaluationItem item = task.item(row);
    const auto count = static_cast<int64_t>(item.choices.size());
    if (row.status().ok() && (item.gold < 0 || item.gold >= count)) {
      row.Fail(absl::StrCat("the answer is number ", item.gold, " of ", count,
                            " choices; is it a split without answers?"));
    }
    items.push_back(std::move(item));
    return row.status();
  });
  if (!read.ok()) return read;
  if (items.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": holds no item"));
  }
  return items;
}

std::vector<EvaluationItem> SpreadItems(std::vector<EvaluationItem> items,
                                        int64_t count) {
  const auto all = static_cast<int64_t>(items.size());
  if (count >= all) return items;
  std::vector<EvaluationItem> chosen;
  for (int64_t i = 0; i < count; ++i) {
    chosen.push_back(std::move(items[static_cast<size_t>(i * all / count)]));
  }
  return chosen;
}

}  // namespace cubit
