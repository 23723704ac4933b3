import com.thoughtworks.xstream.XStream;
import java.lang.reflect.Field;
import org.apache.jmeter.JMeter;
import org.apache.jmeter.util.JMeterUtils;

/**
 * Starts Debian's JMeter with what it needs to read a test plan.
 *
 * <p>Debian 12 has JMeter 2.13 with an XStream that refuses every class it was not told of, and that JMeter tells it of
 * none: each plan ends in {@code ForbiddenClassException}. Here it is told of JMeter's own, and no others. A JMeter of
 * version 3 or later does without this file.
 */
public final class DebianJMeter {
  private static final String HOME = "/usr/share/jmeter";
  private static final String[] ITS_OWN = {"org.apache.jmeter.**", "org.apache.jorphan.**", "java.**"};

  public static void main(String[] words) throws ReflectiveOperationException {
    System.setProperty("jmeter.home", HOME);
    JMeterUtils.setJMeterHome(HOME);
    JMeterUtils.loadJMeterProperties(HOME + "/bin/jmeter.properties");
    Class<?> service = Class.forName("org.apache.jmeter.save.SaveService");
    for (String name : new String[] {"JMXSAVER", "JTLSAVER"}) {
      Field saver = service.getDeclaredField(name);
      saver.setAccessible(true);
      ((XStream) saver.get(null)).allowTypesByWildcard(ITS_OWN);
    }
    new JMeter().start(words);
  }
}
