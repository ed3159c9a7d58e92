// The JDK's own HTTP client, as it comes: a call, a stream, and a key that is none.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

public class Client {
    public static void main(String[] args) throws Exception {
        HttpClient http = HttpClient.newHttpClient();
        String ask = "{\"model\":\"gpt-4o\",\"max_tokens\":20,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]";
        System.out.println(http.send(request(args[0], args[1], ask + "}"), BodyHandlers.ofString()).statusCode());
        var streamed = http.send(request(args[0], args[1], ask + ",\"stream\":true}"), BodyHandlers.ofLines());
        String last = streamed.body().filter(line -> !line.isEmpty()).reduce("", (before, line) -> line);
        System.out.println(streamed.statusCode() + " " + last.substring("data: ".length()));
        System.out.println(http.send(request(args[0], "nobody", ask + "}"), BodyHandlers.ofString()).statusCode());
    }

    private static HttpRequest request(String base, String key, String body) {
        return HttpRequest.newBuilder(URI.create(base + "/chat/completions"))
            .header("Authorization", "Bearer " + key)
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
    }
}
