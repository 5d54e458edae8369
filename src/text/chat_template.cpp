// SPDX-License-Identifier: MIT
#include "text/chat_template.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <new>

#include "text/jinja/interpreter.h"
#include "text/jinja/parser.h"
#include "text/jinja/unicode.h"

namespace mlx_flash {
namespace {

using jinja::Heap;
using jinja::Kind;
using jinja::Limits;
using jinja::TemplateError;
using jinja::Value;

Status to_status(const TemplateError& error) {
  std::string where = "chat template";
  if (error.position().line > 0) {
    where += ", line " + std::to_string(error.position().line) + ", column " +
             std::to_string(error.position().column);
  }
  return invalid_input(where + ": " + error.message());
}

// What the caller passes in, so that limits can grow with honest input.
struct InputSize {
  size_t values = 0;
  size_t bytes = 0;
};

void measure(const Json& json, InputSize* size) {
  ++size->values;
  if (json.is_string()) {
    size->bytes += json.get_ref<const std::string&>().size();
  } else if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      size->bytes += key.size();
      measure(value, size);
    }
  } else if (json.is_array()) {
    for (const Json& value : json) measure(value, size);
  }
}

Limits limits_for(const InputSize& size) {
  Limits limits;
  limits.bytes_max += 8 * size.bytes + 512 * size.values;
  // Some templates look at all messages for each message.
  limits.steps_max += 2000 * size.values + size.bytes / 4;
  return limits;
}

Value convert_text(Heap& heap, const std::string& text) {
  if (!jinja::is_valid_utf8(text)) {
    jinja::fail("a text given to the template is not valid UTF-8");
  }
  return make_string(heap, text);
}

Value convert(Heap& heap, const Json& json) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case Json::value_t::number_integer:
      return Value::integer(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      const auto number = json.get<uint64_t>();
      if (number > static_cast<uint64_t>(INT64_MAX)) {
        return make_big_int(heap, std::to_string(number));
      }
      return Value::integer(static_cast<int64_t>(number));
    }
    case Json::value_t::number_float:
      return Value::real(json.get<double>());
    case Json::value_t::string:
      return convert_text(heap, json.get_ref<const std::string&>());
    case Json::value_t::array: {
      jinja::Values items;
      items.reserve(json.size());
      for (const Json& item : json) items.push_back(convert(heap, item));
      return make_list(heap, std::move(items));
    }
    case Json::value_t::object: {
      Value out(Kind::kDict, new jinja::DictObject(&heap));
      for (const auto& [key, item] : json.items()) {
        out.as<jinja::DictObject>().set(convert_text(heap, key),
                                        convert(heap, item));
      }
      return out;
    }
    default:
      return Value::none();
  }
}

// transformers' _alias_reasoning_fields for one message.
Json with_reasoning_aliases(const Json& message) {
  if (!message.is_object()) return message;
  for (const char* field : {"reasoning_content", "thinking", "reasoning"}) {
    const auto found = message.find(field);
    if (found == message.end() || found->is_null()) continue;
    Json out = Json::object();
    out["thinking"] = *found;
    for (const auto& [key, value] : message.items()) out[key] = value;
    out["reasoning_content"] = *found;
    return out;
  }
  return message;
}

// Reads YYYY-MM-DD, optionally with THH:MM:SS (or a space) and more behind.
bool parse_now(const std::string& text, std::tm* out) {
  int parts[6] = {0, 0, 0, 0, 0, 0};
  const int read = std::sscanf(text.c_str(),
                               "%4d-%2d-%2d%*1[T ]%2d:%2d:%2d",
                               &parts[0],
                               &parts[1],
                               &parts[2],
                               &parts[3],
                               &parts[4],
                               &parts[5]);
  if (read != 3 && read < 5) return false;
  if (parts[0] < 1 || parts[1] < 1 || parts[1] > 12 || parts[2] < 1 ||
      parts[2] > 31 || parts[3] < 0 || parts[3] > 23 || parts[4] < 0 ||
      parts[4] > 59 || parts[5] < 0 || parts[5] > 60) {
    return false;
  }
  *out = std::tm{};
  out->tm_year = parts[0] - 1900;
  out->tm_mon = parts[1] - 1;
  out->tm_mday = parts[2];
  out->tm_hour = parts[3];
  out->tm_min = parts[4];
  out->tm_sec = parts[5];
  // Fills in the weekday and the day of the year, whatever the time zone.
  std::tm filled = *out;
  const std::time_t seconds = timegm(&filled);
  static_cast<void>(seconds);
  if (filled.tm_mday != parts[2]) return false;  // no 31 February
  out->tm_wday = filled.tm_wday;
  out->tm_yday = filled.tm_yday;
  out->tm_isdst = -1;
  return true;
}

// datetime.strftime of a local time without a zone.
std::string format_time(const std::string& format, const std::tm& time) {
  if (format.size() > 1000) jinja::fail("strftime: the format is too long");
  std::string adapted;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      adapted += format[i];
      continue;
    }
    const char code = format[++i];
    if (code == 'f') {
      adapted += "000000";
    } else if (code != 'z' && code != 'Z') {
      adapted += '%';
      adapted += code;
    }
  }
  if (adapted.empty()) return "";
  std::string out(adapted.size() * 32 + 256, '\0');
  out.resize(std::strftime(out.data(), out.size(), adapted.c_str(), &time));
  return out;
}

std::tm local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm out{};
  localtime_r(&now, &out);
  return out;
}

// The variables a template sees, as transformers passes them.
Value make_variables(Heap& heap,
                     const Json& messages,
                     const ChatTemplate::Options& options) {
  Value out(Kind::kDict, new jinja::DictObject(&heap));
  auto& variables = out.as<jinja::DictObject>();
  if (options.variables.is_object()) {
    for (const auto& [name, value] : options.variables.items()) {
      variables.set(convert_text(heap, name), convert(heap, value));
    }
  }
  const auto set = [&](const char* name, Value value) {
    variables.set(make_string(heap, name), std::move(value));
  };
  if (options.alias_reasoning) {
    jinja::Values aliased;
    for (const Json& message : messages) {
      aliased.push_back(convert(heap, with_reasoning_aliases(message)));
    }
    set("messages", make_list(heap, std::move(aliased)));
  } else {
    set("messages", convert(heap, messages));
  }
  set("tools", convert(heap, options.tools));
  set("documents", convert(heap, options.documents));
  set("add_generation_prompt", Value::boolean(options.add_generation_prompt));
  return out;
}

Status check_messages(const Json& messages) {
  if (!messages.is_array()) {
    return invalid_input("messages must be a JSON array of objects");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object()) {
      return invalid_input("messages[" + std::to_string(i) +
                           "] must be a JSON object with role and content");
    }
  }
  return {};
}

}  // namespace

Result<ChatTemplate> ChatTemplate::compile(std::string_view source) {
  if (!jinja::is_valid_utf8(source)) {
    return invalid_input("chat template: the source is not valid UTF-8");
  }
  try {
    return ChatTemplate(
        std::make_shared<const jinja::Template>(jinja::parse(source)));
  } catch (const TemplateError& error) {
    return to_status(error);
  } catch (const std::bad_alloc&) {
    return exhausted("chat template: out of memory while compiling");
  }
}

Result<std::string> ChatTemplate::render(const Json& messages,
                                         const Options& options) const {
  FLASH_RETURN_IF_ERROR(check_messages(messages));
  std::tm time{};
  if (options.now && !parse_now(*options.now, &time)) {
    return invalid_input("the time '" + *options.now +
                         "' is not of the form YYYY-MM-DDTHH:MM:SS");
  }
  InputSize size;
  for (const Json* json :
       {&messages, &options.tools, &options.documents, &options.variables}) {
    measure(*json, &size);
  }
  try {
    Heap heap(limits_for(size));
    const Value variables = make_variables(heap, messages, options);
    jinja::Interpreter interpreter(
        *code_, heap, [&](const std::string& format) {
          return format_time(format, options.now ? time : local_time());
        });
    return interpreter.run(variables);
  } catch (const TemplateError& error) {
    return to_status(error);
  } catch (const std::bad_alloc&) {
    return exhausted("chat template: out of memory while rendering");
  }
}

}  // namespace mlx_flash
