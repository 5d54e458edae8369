// SPDX-License-Identifier: MIT
#include "hub/http.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "base/quote.h"

namespace mlx_flash::hub {
namespace {

constexpr int kRedirectsMax = 10;
constexpr size_t kHeaderBytesMax = size_t{64} << 10;
constexpr size_t kErrorBodyMax = size_t{16} << 10;
constexpr int kTriesMax = 5;  // without progress
constexpr int64_t kWaitMaxMs = 60'000;
constexpr int64_t kRetryAfterMaxS = 300;
// Slower than this for the whole time-out is as good as nothing.
constexpr long kTrickleBytesPerSecond = 1024;
constexpr int kPollMs = 100;  // between looks at `stop`
constexpr long kBufferBytes = long{256} << 10;

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](char c) {
    return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  });
  return text;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())))
    text.remove_suffix(1);
  while (!text.empty() &&
         std::isspace(static_cast<unsigned char>(text.front())))
    text.remove_prefix(1);
  return text;
}

bool is_redirect(long status) {
  return status == 301 || status == 302 || status == 303 || status == 307 ||
         status == 308;
}

// A URL for a message: without its query, which may be a signature.
std::string shown(const std::string& url) {
  return printable(url.substr(0, url.find('?')), 200);
}

// libcurl ignores HTTP_PROXY in capitals, which a web server sets from a
// header; a command line tool has no such server above it.
std::string proxy_in_capitals(const std::string& url) {
  if (!url.starts_with("http://")) return {};
  const auto value = [](const char* name) {
    const char* const text = std::getenv(name);
    return std::string(text == nullptr ? "" : text);
  };
  if (!value("http_proxy").empty() || !value("REQUEST_METHOD").empty()) {
    return {};
  }
  return value("HTTP_PROXY");
}

}  // namespace

// What libcurl's callbacks see of one request.
struct HttpClient::Transfer {
  const HttpRequest* request = nullptr;
  const CurlApi* curl = nullptr;
  CURL* handle = nullptr;
  HttpResponse response;
  size_t header_bytes = 0;
  Status refused;  // why a callback ended the transfer

  static size_t on_header(char* data, size_t, size_t bytes, void* self) {
    return static_cast<Transfer*>(self)->take_header({data, bytes}) ? bytes : 0;
  }
  static size_t on_body(char* data, size_t, size_t bytes, void* self) {
    return static_cast<Transfer*>(self)->take_body({data, bytes}) ? bytes : 0;
  }

  bool take_header(std::string_view line) {
    header_bytes += line.size();
    if (header_bytes > kHeaderBytesMax) {
      refused = io_error("the answer's headers never end");
      return false;
    }
    if (line.starts_with("HTTP/")) {
      response.headers.clear();  // of a 1xx answer before this one
      response.status = 0;
    }
    const size_t colon = line.find(':');
    if (colon == line.npos) return true;
    response.headers[lower(std::string(trim(line.substr(0, colon))))] =
        std::string(trim(line.substr(colon + 1)));
    return true;
  }

  bool take_body(std::span<const char> bytes) {
    if (response.status == 0) {
      curl->easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &response.status);
    }
    if (is_redirect(response.status)) return true;  // nobody reads it
    if (!response.success()) {
      const size_t room = kErrorBodyMax - response.body.size();
      response.body.append(bytes.data(), std::min(bytes.size(), room));
      return true;
    }
    const std::string encoding = response.header("content-encoding");
    if (!encoding.empty() && encoding != "identity") {
      refused = io_error("the answer is compressed, though not asked to be");
      return false;
    }
    if (request->sink) {
      refused = request->sink(response, bytes);
      return refused.ok();
    }
    if (bytes.size() > request->body_max - response.body.size()) {
      refused = io_error(
          fmt::format("the answer is longer than {} bytes", request->body_max));
      return false;
    }
    response.body.append(bytes.data(), bytes.size());
    return true;
  }
};

std::string HttpResponse::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? std::string() : found->second;
}

HttpClient::HttpClient(std::shared_ptr<const CurlApi> curl,
                       const Settings& settings,
                       const Control& control)
    : curl_(std::move(curl)),
      settings_(settings),
      control_(control),
      home_(origin_of(settings.endpoint)),
      handle_(curl_->easy_init()),
      multi_(curl_->multi_init()) {}

HttpClient::~HttpClient() {
  curl_->easy_cleanup(handle_);
  curl_->multi_cleanup(multi_);
}

std::string HttpClient::origin_of(const std::string& url) const {
  CURLU* const parts = curl_->url();
  if (parts == nullptr) return {};
  std::string origin;
  if (curl_->url_set(parts, CURLUPART_URL, url.c_str(), 0) == CURLUE_OK) {
    for (const CURLUPart part :
         {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT}) {
      char* text = nullptr;
      if (curl_->url_get(parts, part, &text, CURLU_DEFAULT_PORT) != CURLUE_OK) {
        origin.clear();
        break;
      }
      origin += lower(text) + '|';
      curl_->free(text);
    }
  }
  curl_->url_cleanup(parts);
  const bool web = origin.starts_with("http|") || origin.starts_with("https|");
  return web ? origin : std::string();
}

Status HttpClient::prepare(const HttpRequest& request, Transfer& transfer) {
  if (handle_ == nullptr || multi_ == nullptr) {
    return exhausted("libcurl has no memory");
  }
  curl_->easy_reset(handle_);
  const auto set = [&](CURLoption option, auto value) {
    return curl_->easy_setopt(handle_, option, value) == CURLE_OK;
  };
  bool ok = set(CURLOPT_URL, transfer.response.url.c_str()) &&
            set(CURLOPT_NOSIGNAL, 1L) && set(CURLOPT_FOLLOWLOCATION, 0L) &&
            set(CURLOPT_USERAGENT, "mlx-flash/" FLASH_VERSION) &&
            set(CURLOPT_CONNECTTIMEOUT_MS, long{settings_.timeout_ms}) &&
            set(CURLOPT_LOW_SPEED_LIMIT, kTrickleBytesPerSecond) &&
            set(CURLOPT_LOW_SPEED_TIME,
                std::max(1L, long{settings_.timeout_ms / 1000})) &&
            set(CURLOPT_TIMEOUT_MS, long{request.total_ms}) &&
            set(CURLOPT_HEADERDATA, &transfer) &&
            set(CURLOPT_HEADERFUNCTION, &Transfer::on_header) &&
            set(CURLOPT_WRITEDATA, &transfer) &&
            set(CURLOPT_WRITEFUNCTION, &Transfer::on_body);
  // Refused while the handle has a buffer from before: then that one is right.
  curl_->easy_setopt(handle_, CURLOPT_BUFFERSIZE, kBufferBytes);
#if LIBCURL_VERSION_NUM >= 0x075700
  // Do not wait for a name that is still being looked up. Newer libraries only.
  curl_->easy_setopt(handle_, CURLOPT_QUICK_EXIT, 1L);
#endif
#if LIBCURL_VERSION_NUM >= 0x075500
  ok = ok && set(CURLOPT_PROTOCOLS_STR, "http,https");
#else
  ok = ok && set(CURLOPT_PROTOCOLS, long{CURLPROTO_HTTP | CURLPROTO_HTTPS});
#endif
  if (request.head) ok = ok && set(CURLOPT_NOBODY, 1L);
  if (request.range) {
    const std::string range =
        fmt::format("{}-{}", request.range->first, request.range->second);
    ok = ok && set(CURLOPT_RANGE, range.c_str());  // copied
  }
  if (!settings_.ca_file.empty()) {
    ok = ok && set(CURLOPT_CAINFO, settings_.ca_file.c_str());
  }
  const std::string proxy = proxy_in_capitals(transfer.response.url);
  if (!proxy.empty()) ok = ok && set(CURLOPT_PROXY, proxy.c_str());
  return ok ? Status()
            : invalid_input(fmt::format("{}: libcurl refuses this address",
                                        shown(transfer.response.url)));
}

HttpFailure HttpClient::failure(const Transfer& transfer, CURLcode code) const {
  const std::string where = shown(transfer.response.url);
  if (control_.stop.load()) return {cancelled("stopped"), false};
  if (!transfer.refused.ok()) return {transfer.refused.at(where), false};
  switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_WEIRD_SERVER_REPLY:
      break;
    default:
      return {
          io_error(fmt::format("{}: {}", where, curl_->easy_strerror(code))),
          false};
  }
  std::string why = curl_->easy_strerror(code);
  if (code == CURLE_OPERATION_TIMEDOUT) {
    why = fmt::format(
        "nothing, or next to nothing, came for {} s (HF_HUB_DOWNLOAD_TIMEOUT "
        "sets how long to wait)",
        settings_.timeout_ms / 1000);
  }
  return {io_error(fmt::format("{}: {}", where, why)), true};
}

// As curl_easy_perform, but for what it does when it is to stop: that one
// would look only once a second.
CURLcode HttpClient::drive() {
  CURLcode code = CURLE_FAILED_INIT;
  if (curl_->multi_add_handle(multi_, handle_) != CURLM_OK) return code;
  bool running = true;
  while (running && !control_.stop.load()) {
    int active = 0;
    CURLMcode step = curl_->multi_perform(multi_, &active);
    int queued = 0;
    while (const CURLMsg* message = curl_->multi_info_read(multi_, &queued)) {
      if (message->msg != CURLMSG_DONE) continue;
      code = message->data.result;
      running = false;
    }
    if (running && step == CURLM_OK) {
      step = curl_->multi_poll(multi_, nullptr, 0, kPollMs, nullptr);
    }
    running = running && step == CURLM_OK;
  }
  curl_->multi_remove_handle(multi_, handle_);
  return code;
}

// One hop. Nothing: transfer.response holds the answer.
std::optional<HttpFailure> HttpClient::perform(const HttpRequest& request,
                                               Transfer& transfer) {
  const Status prepared = prepare(request, transfer);
  if (!prepared.ok()) return HttpFailure{prepared, false};
  curl_slist* headers =
      curl_->slist_append(nullptr, "Accept-Encoding: identity");
  // Never along a redirect to somebody else.
  if (!settings_.token.empty() && !home_.empty() &&
      origin_of(transfer.response.url) == home_) {
    headers = curl_->slist_append(
        headers, ("Authorization: Bearer " + settings_.token).c_str());
  }
  curl_->easy_setopt(handle_, CURLOPT_HTTPHEADER, headers);
  const CURLcode code = drive();
  curl_->slist_free_all(headers);
  if (code != CURLE_OK) return failure(transfer, code);
  curl_->easy_getinfo(
      handle_, CURLINFO_RESPONSE_CODE, &transfer.response.status);
  curl_off_t wait = 0;
  curl_->easy_getinfo(handle_, CURLINFO_RETRY_AFTER, &wait);
  retry_after_s_ = std::max<int64_t>(0, wait);
  return std::nullopt;
}

std::variant<HttpResponse, HttpFailure> HttpClient::send_once(
    const HttpRequest& request) {
  std::string url = request.url;
  retry_after_s_ = 0;
  for (int hop = 0; hop <= kRedirectsMax; ++hop) {
    Transfer transfer;
    transfer.request = &request;
    transfer.curl = curl_.get();
    transfer.handle = handle_;
    transfer.response.url = url;
    if (const auto failed = perform(request, transfer)) return *failed;
    if (!is_redirect(transfer.response.status)) {
      return std::move(transfer.response);
    }
    char* next = nullptr;
    curl_->easy_getinfo(handle_, CURLINFO_REDIRECT_URL, &next);
    const std::string target = next == nullptr ? "" : next;
    const std::string from = origin_of(url);
    const std::string origin = origin_of(target);
    if (origin.empty() ||
        (from.starts_with("https|") && !origin.starts_with("https|"))) {
      return HttpFailure{
          io_error(fmt::format(
              "{}: redirects to {}, which is not followed: only http(s), and "
              "never from https to http",
              shown(url),
              quote(shown(target)))),
          false};
    }
    if ((request.head || request.stay) && origin != from) {
      transfer.response.location = target;
      return std::move(transfer.response);
    }
    url = target;
  }
  return HttpFailure{io_error(fmt::format("{}: redirects more than {} times",
                                          shown(request.url),
                                          kRedirectsMax)),
                     false};
}

Result<HttpResponse> HttpClient::send(const HttpRequest& request) {
  Backoff backoff(settings_.backoff_ms, control_);
  while (true) {
    auto outcome = send_once(request);
    if (auto* failed = std::get_if<HttpFailure>(&outcome)) {
      if (!failed->again) return failed->status;
      FLASH_RETURN_IF_ERROR(backoff.wait(failed->status, 0));
      continue;
    }
    HttpResponse& response = std::get<HttpResponse>(outcome);
    if (!is_transient(response.status)) return std::move(response);
    const Status why = io_error(fmt::format(
        "{}: the server answers {}", shown(request.url), response.status));
    FLASH_RETURN_IF_ERROR(backoff.wait(why, retry_after_s_));
  }
}

Status Backoff::wait(const Status& why, int64_t retry_after_s) {
  if (control_.stop.load()) return cancelled("stopped");
  if (retry_after_s > kRetryAfterMaxS) {
    return Status(
        why.code(),
        fmt::format(
            "{}; it asks to come back in {} s", why.message(), retry_after_s));
  }
  if (++tries_ >= kTriesMax) {
    return Status(why.code(),
                  fmt::format("{}; gave up after {} tries: try again later, "
                              "what was downloaded is kept",
                              why.message(),
                              kTriesMax));
  }
  const int64_t pause = std::max(
      std::min(kWaitMaxMs, first_ms_ << (tries_ - 1)), retry_after_s * 1000);
  if (control_.note) {
    control_.note(fmt::format("{}; trying again in {:.1f} s",
                              why.message(),
                              static_cast<double>(pause) / 1000));
  }
  constexpr int64_t kStepMs = 50;
  for (int64_t waited = 0; waited < pause; waited += kStepMs) {
    if (control_.stop.load()) return cancelled("stopped");
    std::this_thread::sleep_for(
        std::chrono::milliseconds(std::min(kStepMs, pause - waited)));
  }
  return Status();
}

bool is_transient(long status) {
  return status == 408 || status == 429 || status == 500 || status == 502 ||
         status == 503 || status == 504;
}

}  // namespace mlx_flash::hub
