// SPDX-License-Identifier: Apache-2.0
//
// Expected texts are what lm-evaluation-harness 0.4.13 makes of the rows
// (tests/integration/compare_lm_eval.py compares on whole files).

#include "launch/evaluation_tasks.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "runtime/check.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::NewFolder;
using testing::WriteText;

absl::StatusOr<std::vector<EvaluationItem>> Read(const std::string& task,
                                                 const std::string& rows,
                                                 int64_t limit = 0) {
  const std::string path = NewFolder() + "/rows.jsonl";
  WriteText(path, rows);
  const auto found = FindEvaluationTask(task);
  CUBIT_CHECK_OK(found);
  return ReadTaskItems(**found, path, limit);
}

EvaluationItem Only(const std::string& task, const std::string& row) {
  const auto items = Read(task, row);
  CUBIT_CHECK_OK(items);
  EXPECT_EQ(items->size(), 1u);
  return items->front();
}

std::string Problem(const std::string& task, const std::string& row) {
  const auto items = Read(task, row);
  return items.ok() ? "none" : std::string(items.status().message());
}

std::vector<std::string> Contexts(const EvaluationItem& item) {
  std::vector<std::string> contexts;
  for (const auto& choice : item.choices) contexts.push_back(choice.context);
  return contexts;
}

std::vector<std::string> Continuations(const EvaluationItem& item) {
  std::vector<std::string> texts;
  for (const auto& choice : item.choices) texts.push_back(choice.continuation);
  return texts;
}

TEST(ArcTask, AsksTheQuestionInBothForms) {
  const std::string short_form =
      R"({"id":"x","question":"Why?","choices":["a é","b"],"gold":1})";
  const std::string hub_form =
      R"({"id":"x","question":"Why?","choices":{"text":["a é","b"],)"
      R"("label":["1","2"]},"answerKey":"2"})";
  for (const std::string& row : {short_form, hub_form}) {
    const EvaluationItem item = Only("arc_easy", row);
    EXPECT_THAT(Contexts(item), ElementsAre("Question: Why?\nAnswer:",
                                            "Question: Why?\nAnswer:"));
    EXPECT_THAT(Continuations(item), ElementsAre(" a é", " b"));
    EXPECT_EQ(item.choices[0].characters, 3);
    EXPECT_EQ(item.choices[0].bytes, 4);
    EXPECT_EQ(item.gold, 1);
  }
  EXPECT_THAT(
      Problem("arc_challenge", R"({"question":"?","choices":{"text":["a"],)"
                               R"("label":["A"]},"answerKey":"B"})"),
      HasSubstr("answerKey \"B\" is none of choices.label"));
}

TEST(HellaSwagTask, CleansTheDataSetsOwnRows) {
  const EvaluationItem item =
      Only("hellaswag",
           R"({"activity_label":"Baking","ctx_a":"[header] A man mixes.",)"
           R"("ctx_b":"THEN he","endings":[" bakes [it]  well. ",)"
           R"("[title] stops [title] now"],"label":"1"})");
  EXPECT_THAT(Contexts(item), ElementsAre("Baking: A man mixes. Then he",
                                          "Baking: A man mixes. Then he"));
  EXPECT_THAT(Continuations(item),
              ElementsAre(" bakes  well.", "  stops. now"));
  EXPECT_EQ(item.choices[0].characters, 12);
  EXPECT_EQ(item.gold, 1);
}

TEST(HellaSwagTask, CleansBracketsWithinALineOnly) {
  const EvaluationItem item = Only(
      "hellaswag",
      R"({"activity_label":"A","ctx_a":"b","ctx_b":"","endings":)"
      R"(["  [header] How to run [title] Find shoes.  [step] Tie [them\n] well. ")"
      R"(,"a  b   c","[[x] y] z","no [end","\u00a0[a]\u3000b [title][title]\u001f"],)"
      R"("label":"0"})");
  EXPECT_THAT(Continuations(item),
              ElementsAre("  How to run. Find shoes.  Tie [them\n] well.",
                          " a b  c", "  y] z", " no [end", " \u3000b. "));
  EXPECT_EQ(item.choices[0].context, "A: b");
}

TEST(HellaSwagTask, TakesCleanRowsAsTheyAre) {
  const EvaluationItem item =
      Only("hellaswag", R"({"query":"A: b [c]","choices":["d","e"],"gold":0})");
  EXPECT_EQ(item.choices[1].context, "A: b [c]");
  EXPECT_EQ(item.choices[1].continuation, " e");
}

TEST(PiqaTask, KeepsSpacesOfSolutions) {
  const EvaluationItem item = Only(
      "piqa", R"({"goal":"open it","sol1":"pull ","sol2":"push","label":1})");
  EXPECT_EQ(item.choices[0].context, "Question: open it\nAnswer:");
  EXPECT_THAT(Continuations(item), ElementsAre(" pull ", " push"));
  EXPECT_EQ(item.choices[0].characters, 5);
  EXPECT_EQ(item.gold, 1);
  EXPECT_THAT(
      Problem("piqa", R"({"goal":"x","sol1":"a","sol2":"b","label":-1})"),
      HasSubstr("the answer is number -1 of 2 choices"));
}

TEST(SciqTask, PutsTheSupportFirstAndTheAnswerLast) {
  const EvaluationItem item =
      Only("sciq",
           R"({"question":"Who?","distractor1":"a","distractor2":"b",)"
           R"("distractor3":"c","correct_answer":"d","support":" \tText. "})");
  EXPECT_EQ(item.choices[0].context, "Text. \nQuestion: Who?\nAnswer:");
  EXPECT_THAT(Continuations(item), ElementsAre(" a", " b", " c", " d"));
  EXPECT_EQ(item.gold, 3);
}

TEST(WinograndeTask, ScoresWhatFollowsTheGap) {
  const EvaluationItem item =
      Only("winogrande", R"({"sentence":"Ann met Eve so _ smiled_ . ",)"
                         R"("option1":"Ann","option2":"Eve","answer":"2"})");
  EXPECT_THAT(Contexts(item),
              ElementsAre("Ann met Eve so Ann", "Ann met Eve so Eve"));
  EXPECT_THAT(Continuations(item), ElementsAre(" smiled_ .", " smiled_ ."));
  EXPECT_EQ(item.gold, 1);
  EXPECT_THAT(Problem("winogrande",
                      R"({"sentence":"No gap.","option1":"a","option2":"b",)"
                      R"("answer":"1"})"),
              HasSubstr("has no gap"));
}

TEST(SocialIqaTask, AsksAfterTheContext) {
  const EvaluationItem item = Only(
      "social_iqa", R"({"context":"Al ran.","question":"Why?","answerA":"a",)"
                    R"("answerB":"b","answerC":"c","label":"3"})");
  EXPECT_EQ(item.choices[0].context, "Q: Al ran. Why?\nA:");
  EXPECT_THAT(Continuations(item), ElementsAre(" a", " b", " c"));
  EXPECT_EQ(item.gold, 2);
}

// The data set holds the problems as text of Python; a list is accepted too.
TEST(RaceTask, TellsTheEarlierAnswersAndAsksTheLastQuestion) {
  const std::string python =
      R"("[{'question': 'What sat?', 'answer': 'B', 'options': ['a dog', )"
      R"('the cat\\'s \"friend\"', 'x', 'y']}, {'question': 'The cat  _  .', )"
      R"('answer': 'C', 'options': ['ran', 'hid', 'sat down.', 'é–']}, )"
      R"({'question': 'Where?  ', 'answer': 'D', 'options': ['on', 'it', )"
      R"('a mat', 'there']}]")";
  const std::string list =
      R"([{"question":"What sat?","answer":"B","options":["a dog",)"
      R"("the cat's \"friend\"","x","y"]},{"question":"The cat  _  .",)"
      R"("answer":"C","options":["ran","hid","sat down.","é–"]},)"
      R"({"question":"Where?  ","answer":"D","options":["on","it","a mat",)"
      R"("there"]}])";
  for (const std::string& problems : {python, list}) {
    const EvaluationItem item =
        Only("race", R"({"article":"A cat sat.","problems":)" + problems + "}");
    EXPECT_EQ(item.choices[0].context,
              "Article: A cat sat.\n\nQuestion: What sat?\nAnswer: the cat's "
              "\"friend\"\nThe cat sat down.\nWhere?  ");
    EXPECT_THAT(Continuations(item),
                ElementsAre(" on", " it", " a mat", " there"));
    EXPECT_EQ(item.gold, 3);
  }
}

TEST(RaceTask, RefusesProblemsThatAreNone) {
  const auto problem = [](const std::string& problems) {
    return Problem("race", R"({"article":"A","problems":)" + problems + "}");
  };
  EXPECT_THAT(problem("[]"), HasSubstr("is no list of problems"));
  EXPECT_THAT(problem("\"[1\""), HasSubstr("not a Python literal"));
  EXPECT_THAT(problem(R"([{"question":"?","answer":"A","options":["a"]}])"),
              HasSubstr("has 1 options, wanted 4"));
  EXPECT_THAT(
      problem(R"([{"question":"?","answer":"E","options":["a","b","c","d"]}])"),
      HasSubstr("answer \"E\" is none of ABCD"));
}

TEST(ReadTaskItems, NamesFileAndLine) {
  EXPECT_THAT(Problem("piqa", "{\"goal\":\"x\"}\n"),
              HasSubstr("rows.jsonl, line 1: has no \""));
  EXPECT_THAT(Problem("piqa", ""), HasSubstr("holds no item"));
}

TEST(ReadTaskItems, TakesTheFirst) {
  std::string rows;
  for (int i = 0; i < 5; ++i) {
    rows += R"({"query":"q)" + std::to_string(i) +
            R"(","choices":["a","b"],"gold":0})" + "\n";
  }
  const auto items = Read("hellaswag", rows, 3);
  ASSERT_TRUE(items.ok());
  ASSERT_EQ(items->size(), 3u);
  EXPECT_EQ(items->back().choices[0].context, "q2");
}

TEST(SpreadItems, TakesEvenly) {
  std::vector<EvaluationItem> items(10);
  for (int i = 0; i < 10; ++i) items[static_cast<size_t>(i)].gold = i;
  const auto golds = [&](int64_t count) {
    std::vector<int64_t> list;
    for (const auto& item : SpreadItems(items, count)) {
      list.push_back(item.gold);
    }
    return list;
  };
  EXPECT_THAT(golds(4), ElementsAre(0, 2, 5, 7));
  EXPECT_EQ(golds(10).size(), 10u);
  EXPECT_EQ(golds(99).size(), 10u);
}

TEST(FindEvaluationTask, SuggestsTheNearestName) {
  EXPECT_TRUE(FindEvaluationTask("race").ok());
  const auto task = FindEvaluationTask("helaswag");
  ASSERT_FALSE(task.ok());
  EXPECT_THAT(std::string(task.status().message()),
              HasSubstr("did you mean hellaswag?"));
}

TEST(FindTaskFile, TakesTheBestName) {
  const auto task = FindEvaluationTask("sciq");
  ASSERT_TRUE(task.ok());
  const std::string folder = NewFolder();
  const auto none = FindTaskFile(**task, folder);
  EXPECT_TRUE(absl::IsNotFound(none.status()));
  EXPECT_THAT(std::string(none.status().message()),
              HasSubstr("sciq_test.jsonl, sciq_validation.jsonl"));
  WriteText(folder + "/sciq_validation.jsonl.xz", "");
  EXPECT_EQ(*FindTaskFile(**task, folder),
            folder + "/sciq_validation.jsonl.xz");
  WriteText(folder + "/sciq_test.jsonl", "");
  EXPECT_EQ(*FindTaskFile(**task, folder), folder + "/sciq_test.jsonl");
}

}  // namespace
}  // namespace cubit
